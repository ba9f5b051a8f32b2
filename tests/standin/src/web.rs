//! The web image: a Next.js server whose entrypoint turns variables into NEXT_PUBLIC_*.

use http::Request;
use hyper::body::Incoming;

use crate::env::Env;
use crate::failure::Failure;
use crate::http::{Answer, Manners, header_of, listen, serve, with_type};
use crate::{Image, log, startup, tasks};

/// Serves pages on port 3000.
pub(crate) async fn run(image: Image) -> Result<(), Failure> {
    let stop = tasks::stop_signal()?;
    let listener = async {
        startup::pay(&image.baked, startup::WEB).await?;
        listen("0.0.0.0", image.env.number("PORT", 3000)).await
    };
    // Node binds after it has started, unlike gunicorn.
    let listener = tokio::select! {
        listener = listener => listener?,
        () = stop.cancelled() => return Ok(()),
    };
    log::line("   ▲ Next.js 15.5.0\n ✓ Ready");
    let body = body(&image.env, &image.baked.release);
    let handler = move |request: Request<Incoming>| {
        let page = page(&body, &request);
        async move { page }
    };
    serve(listener, Manners::RELAXED, stop, handler).await;
    Ok(())
}

/// What the entrypoint derives; an unset URL leaves a relative prefix, which the browser cannot use across hosts.
fn body(env: &Env, release: &str) -> String {
    let api = format!("{}/console/api", env.or("CONSOLE_API_URL", ""));
    let public = format!("{}/api", env.or("APP_API_URL", ""));
    format!(
        "<body data-api-prefix=\"{api}\" data-public-api-prefix=\"{public}\" data-socket-url=\"{}\" data-edition=\"{}\" data-version=\"{release}\" data-agent-v2=\"{}\">",
        env.or("NEXT_PUBLIC_SOCKET_URL", "ws://localhost"),
        env.or("DEPLOYMENT_EDITION", env.or("EDITION", "SELF_HOSTED")),
        env.or("NEXT_PUBLIC_ENABLE_AGENT_V2", "true"),
    )
}

fn page(body: &str, request: &Request<Incoming>) -> Answer {
    let path = request.uri().path();
    if path.starts_with("/_next/static/") {
        return with_type(200, "application/javascript", "/* stand-in */");
    }
    let title = if path == "/install" { "Setting up an admin account" } else { "Dify" };
    let seen: String =
        path.chars().filter(|c| c.is_ascii_alphanumeric() || "/_-.".contains(*c)).collect();
    let proto =
        if header_of(request.headers(), "x-forwarded-proto") == "https" { "https" } else { "http" };
    with_type(
        200,
        "text/html; charset=utf-8",
        format!(
            "<!DOCTYPE html><html><head><title>{title}</title></head>{body}<main data-path=\"{seen}\" data-proto=\"{proto}\"></main></body></html>"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_carries_the_urls_of_the_environment() {
        let page = body(
            &Env::with(&[("CONSOLE_API_URL", "https://h"), ("NEXT_PUBLIC_SOCKET_URL", "wss://h")]),
            "1.14.2",
        );
        assert!(
            page.contains("data-api-prefix=\"https://h/console/api\"") && page.contains("wss://h")
        );
        assert!(page.contains("data-public-api-prefix=\"/api\""));
    }
}
