//! What containers print, and commands run inside them.

use std::collections::VecDeque;
use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecResults};
use bollard::query_parameters::LogsOptionsBuilder;
use futures_util::{Stream, StreamExt, stream};

use super::{Engine, EngineError, EngineErrorKind, QUICK, translate, within};
use crate::engine::lines::Lines;

/// Of a command's output this much is kept, the end of it.
const OUTPUT_KEPT: usize = 64 * 1024;

/// One line a container printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// On stderr rather than stdout.
    pub stderr: bool,
    /// The line without its end.
    pub text: String,
}

/// How a command inside a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Executed {
    /// Its exit code.
    pub exit: i64,
    /// stdout and stderr as they came, the last 64 KiB.
    pub output: String,
}

impl Engine {
    /// The last `tail` lines of a container (all of them for `None`), then,
    /// with `follow`, what comes until it ends. No deadline: it is as long as
    /// the container lives; drop it to end it.
    pub fn logs(
        &self,
        name: &str,
        tail: Option<u32>,
        follow: bool,
    ) -> impl Stream<Item = Result<LogLine, EngineError>> + Send + use<> {
        let tail = tail.map_or_else(|| "all".to_owned(), |lines| lines.to_string());
        let options =
            LogsOptionsBuilder::new().stdout(true).stderr(true).follow(follow).tail(&tail).build();
        let target = name.to_owned();
        let chunks = Box::pin(self.docker.logs(name, Some(options)));
        let begin = (chunks, Cutter::default(), target);
        stream::unfold(begin, |(mut chunks, mut cutter, target)| async move {
            loop {
                if let Some(line) = cutter.ready.pop_front() {
                    return Some((Ok(line), (chunks, cutter, target)));
                }
                match chunks.next().await {
                    Some(Ok(chunk)) => cutter.push(&chunk),
                    Some(Err(error)) => {
                        let error = translate("read the log of container", &target, error);
                        return Some((Err(error), (chunks, cutter, target)));
                    }
                    None => {
                        cutter.finish();
                        let line = cutter.ready.pop_front()?;
                        return Some((Ok(line), (chunks, cutter, target)));
                    }
                }
            }
        })
    }

    /// Runs a command inside a running container. When the deadline passes the
    /// command is left behind: Docker has no way to end it from outside.
    pub async fn exec(
        &self,
        name: &str,
        command: &[String],
        deadline: Duration,
    ) -> Result<Executed, EngineError> {
        const DOING: &str = "run a command in container";
        let run = async {
            let options = CreateExecOptions {
                attach_stdout: Some(true),
                attach_stderr: Some(true),
                cmd: Some(command.to_vec()),
                ..CreateExecOptions::default()
            };
            let exec = within(QUICK, DOING, name, self.docker.create_exec(name, options)).await?;
            let started =
                within(QUICK, DOING, name, self.docker.start_exec(&exec.id, None)).await?;
            let StartExecResults::Attached { output: mut chunks, input: _ } = started else {
                return Err(EngineError::new(
                    EngineErrorKind::Engine,
                    DOING,
                    name,
                    "the engine did not attach to it",
                ));
            };
            let mut output = Vec::new();
            while let Some(chunk) = chunks.next().await {
                let chunk = chunk.map_err(|error| translate(DOING, name, error))?;
                output.extend_from_slice(chunk.as_ref());
                if output.len() > 2 * OUTPUT_KEPT {
                    output.drain(..output.len() - OUTPUT_KEPT);
                }
            }
            let ended = within(QUICK, DOING, name, self.docker.inspect_exec(&exec.id)).await?;
            let start = output.len().saturating_sub(OUTPUT_KEPT);
            Ok(Executed {
                // None: the engine has not written it down yet, which is not 0.
                exit: ended.exit_code.unwrap_or(-1),
                output: String::from_utf8_lossy(&output[start..]).into_owned(),
            })
        };
        match tokio::time::timeout(deadline, Box::pin(run)).await {
            Ok(done) => done,
            Err(_) => Err(EngineError::deadline(DOING, name, deadline)),
        }
    }
}

/// Keeps the two streams of a container apart while cutting lines.
#[derive(Default)]
struct Cutter {
    stdout: Lines,
    stderr: Lines,
    ready: VecDeque<LogLine>,
}

impl Cutter {
    fn push(&mut self, chunk: &LogOutput) {
        let stderr = matches!(chunk, LogOutput::StdErr { .. });
        let lines = if stderr { &mut self.stderr } else { &mut self.stdout };
        let lines = lines.push(chunk.as_ref());
        self.ready.extend(lines.into_iter().map(|text| LogLine { stderr, text }));
    }

    fn finish(&mut self) {
        let rests = [(false, self.stdout.finish()), (true, self.stderr.finish())];
        self.ready.extend(
            rests
                .into_iter()
                .filter_map(|(stderr, rest)| rest.map(|text| LogLine { stderr, text })),
        );
    }
}
