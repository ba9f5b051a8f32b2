//! One-shots on the real engine.

use std::time::Duration;

use dify_agent::engine::EngineErrorKind;
use dify_agent::engine::docker::Ended;
use dify_agent::engine::spec::FileMount;

use super::bed::{Bed, guest_image, on_engine, wait_for};
use super::containers::observe;

#[tokio::test]
async fn one_shots_report_how_they_ended_and_leave_nothing() {
    on_engine("once", 3, async |bed: Bed| {
        let image = guest_image(&bed).await;
        bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
        let mut show = bed.container("job", 10, "show /etc/own.conf", &image);
        show.files.push(FileMount {
            path: "/etc/own.conf".into(),
            content: "a file of ours".into(),
            mode: 0o444,
        });
        let deadline = Duration::from_secs(30);
        let cases = [
            (
                bed.container("job", 10, "exit 0", &image),
                deadline,
                Ended::Exited(0),
                "one|two|three",
            ),
            (
                bed.container("job", 10, "exit 3", &image),
                deadline,
                Ended::Exited(3),
                "one|two|three",
            ),
            (show, deadline, Ended::Exited(0), "a file of ours"),
            (bed.container("job", 10, "eat", &image), deadline, Ended::OutOfMemory, ""),
            (
                bed.container("job", 10, "serve", &image),
                Duration::from_secs(2),
                Ended::Deadline(Duration::from_secs(2)),
                "serving",
            ),
        ];
        for (spec, deadline, ended, said) in cases {
            let mut lines = Vec::new();
            let finished = bed
                .engine
                .run_once(&spec, &bed.site, deadline, |line| {
                    lines.push(line.to_owned());
                })
                .await;
            let finished = finished.expect("ran");
            assert_eq!(finished.ended, ended, "{finished:?}");
            assert_eq!(finished.tail, lines);
            let all = lines.join("|");
            for word in said.split('|') {
                assert!(all.contains(word), "{word:?} is not in {all:?}");
            }
            let observed = observe(&bed).await;
            assert!(observed.one_shots.is_empty() && observed.containers.is_empty());
        }
    })
    .await;
}

#[tokio::test]
async fn a_one_shot_whose_process_is_gone_is_an_orphan_and_removed() {
    on_engine("orphan", 4, async |bed: Bed| {
        let image = guest_image(&bed).await;
        bed.engine.ensure_network(&bed.network("main", 0), &bed.site).await.expect("network");
        let spec = bed.container("job", 10, "serve", &image);
        let long = Duration::from_mins(1);
        // Waited for: no orphan, and nobody else starts it.
        {
            let mut running = Box::pin(bed.engine.run_once(&spec, &bed.site, long, |_| ()));
            let seen = wait_for("the one-shot", async || {
                observe(&bed).await.one_shots.values().any(|found| !found.orphan)
            });
            tokio::select! {
                // cancel-safe: the one-shot is meant to be dropped below.
                ended = &mut running => panic!("ended: {ended:?}"),
                // cancel-safe: it only looks.
                () = seen => {}
            }
            let second = bed
                .engine
                .run_once(&spec, &bed.site, long, |_| ())
                .await
                .expect_err("it runs already");
            assert_eq!(second.kind(), EngineErrorKind::Stale);
        }
        // Dropped in the middle, as by a crash: found, and removed.
        assert!(observe(&bed).await.one_shots.values().all(|found| found.orphan));
        assert_eq!(bed.engine.remove_orphans(&bed.site).await.expect("removed"), 1);
        assert!(observe(&bed).await.one_shots.is_empty());
    })
    .await;
}
