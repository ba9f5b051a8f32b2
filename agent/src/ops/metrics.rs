//! The status as Prometheus text. Names: `<namespace>_<name>_<unit>[_total]`.

use std::fmt::Write;

use dify_common::wire::status::AgentStatus;

/// Renders one scrape.
pub(super) fn render(status: &AgentStatus) -> String {
    let mut out = String::new();
    gauge(&mut out, "ready", "what /health says", u64::from(status.ready));
    gauge(&mut out, "live", "what /health/live says", u64::from(status.live));
    head(&mut out, "phase", "the phase the node is in", "gauge");
    line(&mut out, "phase", &[("phase", status.phase.as_str())], 1);
    head(&mut out, "missing", "kinds of what serving needs and lacks", "gauge");
    for kind in &status.missing {
        line(&mut out, "missing", &[("kind", kind)], 1);
    }
    head(&mut out, "container_ready", "answers its probe", "gauge");
    for container in &status.containers {
        let labels = [("service", container.service.as_str())];
        line(&mut out, "container_ready", &labels, u64::from(container.ready));
    }
    head(&mut out, "container_starts_total", "starts by this agent", "counter");
    for container in &status.containers {
        let labels = [("service", container.service.as_str())];
        line(&mut out, "container_starts_total", &labels, u64::from(container.restarts));
    }
    head(&mut out, "edge_in_flight", "requests being served, by upstream", "gauge");
    for edge in &status.edges {
        for (upstream, count) in &edge.by_upstream {
            let labels = [("edge", edge.instance.as_str()), ("upstream", upstream.as_str())];
            line(&mut out, "edge_in_flight", &labels, u64::from(*count));
        }
    }
    head(&mut out, "edge_requests_total", "requests answered", "counter");
    for edge in &status.edges {
        line(&mut out, "edge_requests_total", &[("edge", &edge.instance)], edge.requests);
    }
    out
}

fn gauge(out: &mut String, name: &str, help: &str, value: u64) {
    head(out, name, help, "gauge");
    line(out, name, &[], value);
}

fn head(out: &mut String, name: &str, help: &str, kind: &str) {
    let _ = writeln!(out, "# HELP dify_agent_{name} {help}\n# TYPE dify_agent_{name} {kind}");
}

fn line(out: &mut String, name: &str, labels: &[(&str, &str)], value: u64) {
    let labels: Vec<String> =
        labels.iter().map(|(key, text)| format!("{key}=\"{}\"", escaped(text))).collect();
    let labels =
        if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
    let _ = writeln!(out, "dify_agent_{name}{labels} {value}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use crate::board::Board;

    #[test]
    fn a_scrape_names_what_is_missing() {
        let board = Board::new("n1".parse().expect("valid"), false);
        let text = super::render(&board.status());
        assert!(text.contains("dify_agent_ready 0\n"), "{text}");
        assert!(text.contains("dify_agent_missing{kind=\"booting\"} 1\n"), "{text}");
        assert!(text.contains("dify_agent_phase{phase=\"booting\"} 1\n"), "{text}");
    }
}
