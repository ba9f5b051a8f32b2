//! The server side of a WebSocket (RFC 6455): handshake, and an echo of frames.

use base64::Engine as _;
use http::{HeaderValue, Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::http::{Answer, header_of, with_type};
use crate::{sha1, tasks};

/// Answers 101 and echoes every frame until the peer closes; 400 without a proper handshake.
pub(crate) fn upgrade(mut request: Request<Incoming>) -> Answer {
    let headers = request.headers();
    let key = header_of(headers, "sec-websocket-key").to_owned();
    let asked = header_of(headers, "upgrade").eq_ignore_ascii_case("websocket")
        && header_of(headers, "connection").to_ascii_lowercase().contains("upgrade")
        && header_of(headers, "sec-websocket-version") == "13";
    if key.is_empty() || !asked {
        return with_type(
            400,
            "text/plain",
            "\"The client is using an unsupported version of the Socket.IO or Engine.IO protocols\"",
        );
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tasks::spawn(async move {
        if let Ok(stream) = upgraded.await {
            let _closed = echo(TokioIo::new(stream)).await;
        }
    });
    let mut answer = with_type(101, "text/plain", "");
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = answer.headers_mut();
    headers.remove(header::CONTENT_TYPE);
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    if let Ok(accept) = HeaderValue::from_str(&accept_of(&key)) {
        headers.insert("sec-websocket-accept", accept);
    }
    answer
}

/// `Sec-WebSocket-Accept` of a key.
fn accept_of(key: &str) -> String {
    base64::engine::general_purpose::STANDARD
        .encode(sha1::digest(format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11").as_bytes()))
}

/// Echoes text and binary, answers ping with pong, ends with the close frame.
async fn echo(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
    loop {
        let (first, second) = (stream.read_u8().await?, stream.read_u8().await?);
        let length = match second & 0x7f {
            126 => u64::from(stream.read_u16().await?),
            127 => stream.read_u64().await?,
            short => u64::from(short),
        };
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= 1 << 20)
            .ok_or(std::io::ErrorKind::InvalidData)?;
        let mut mask = [0; 4];
        if second & 0x80 != 0 {
            stream.read_exact(&mut mask).await?;
        }
        let mut payload = vec![0; length];
        stream.read_exact(&mut payload).await?;
        payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, key)| *byte ^= key);
        let opcode = match first & 0x0f {
            0x9 => first & 0xf0 | 0xa,
            0xa => continue,
            _ => first,
        };
        let mut frame = vec![opcode];
        match u16::try_from(payload.len()) {
            Ok(short @ 0..126) => frame.push(short.to_be_bytes()[1]),
            Ok(medium) => {
                frame.push(126);
                frame.extend(medium.to_be_bytes());
            }
            Err(_) => {
                frame.push(127);
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend(payload);
        stream.write_all(&frame).await?;
        if opcode & 0x0f == 0x8 {
            return stream.shutdown().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_of_the_rfc_s_example() {
        assert_eq!(accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn a_masked_frame_comes_back_unmasked() {
        let (mut near, far) = tokio::io::duplex(64);
        let server = tasks::spawn(echo(far));
        near.write_all(&[0x81, 0x82, 1, 2, 3, 4, b'h' ^ 1, b'i' ^ 2]).await.unwrap();
        let mut back = [0; 4];
        near.read_exact(&mut back).await.unwrap();
        assert_eq!(back, [0x81, 2, b'h', b'i']);
        near.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.unwrap();
        server.await.unwrap().unwrap();
    }
}
