//! Pulling and resolving against a real registry.

use std::num::NonZeroU32;

use dify_agent::engine::EngineErrorKind;
use dify_agent::engine::pull::{PullNews, pull_all};
use dify_agent::registry::Registry;
use dify_common::retry::Retryable;
use tokio::sync::mpsc;

use super::bed::{Bed, LocalRegistry, digest, on_engine};

#[tokio::test]
async fn images_are_pulled_once_by_digest_with_news_and_then_found() {
    on_engine("pull", 20, async |bed: Bed| {
        let registry = LocalRegistry::start().await;
        let client = Registry::new(None).expect("client");
        let mut images = Vec::new();
        for name in ["a:1", "b:2"] {
            let note = format!("{name} of {}", registry.host);
            let (reference, pushed) = registry.push_guest(name, &note).await;
            let resolved = client.resolve(&reference).await.expect("resolved");
            assert_eq!(resolved.digest, pushed);
            assert_eq!(resolved.media_type, "application/vnd.oci.image.manifest.v1+json");
            images.push(reference.pinned(resolved.digest));
            bed.will_pull(&images[images.len() - 1]);
        }
        let two = NonZeroU32::new(2).expect("not zero");
        for (round, turn) in [PullNews::Done, PullNews::Present].into_iter().enumerate() {
            let (tell, mut news) = mpsc::channel(1024);
            let pulled = pull_all(&bed.engine, &images, two, None, &tell).await.expect("pulled");
            drop(tell);
            assert_eq!(
                pulled.iter().map(|pulled| &pulled.reference).collect::<Vec<_>>(),
                images.iter().collect::<Vec<_>>()
            );
            assert!(
                pulled
                    .iter()
                    .all(|pulled| pulled.facts.has(pulled.reference.digest().expect("pinned")))
            );
            let mut events = Vec::new();
            while let Some(event) = news.recv().await {
                events.push(event);
            }
            for image in &images {
                let told = |wanted: &PullNews| {
                    events.iter().any(|event| event.image == *image && event.news == *wanted)
                };
                assert!(told(&turn), "{events:?}");
                let layers = events
                    .iter()
                    .any(|event| event.image == *image && matches!(event.news, PullNews::Layer(_)));
                assert_eq!(layers, round == 0);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_pulled_says_why() {
    on_engine("refused", 21, async |bed: Bed| {
        let mut registry = LocalRegistry::start().await;
        let (reference, _) = registry.push_guest("c:1", "refused").await;
        let pull =
            async |image| bed.engine.pull(&image, None, drop).await.expect_err("cannot be pulled");
        let unknown = [
            registry.reference("c:none"),
            registry.reference("none:1"),
            reference.pinned(digest(b"other")),
        ];
        let client = Registry::new(None).expect("client");
        for image in unknown {
            let error = pull(image.clone()).await;
            assert_eq!(error.kind(), EngineErrorKind::BadImage, "{error}");
            assert!(error.is_permanent());
            let error = client.resolve(&image).await.expect_err("unknown");
            assert_eq!(error.kind(), "image", "{error}");
        }
        registry.stop().await;
        let error = pull(reference.clone()).await;
        assert_eq!(error.kind(), EngineErrorKind::Registry, "{error}");
        assert!(!error.is_permanent(), "it may come back");
        let error = client.resolve(&reference).await.expect_err("away");
        assert_eq!((error.kind(), error.is_permanent()), ("registry", false), "{error}");
        assert!(client.ping(&reference).await.is_err());
    })
    .await;
}

#[tokio::test]
async fn content_that_is_not_what_the_digest_names_is_refused() {
    on_engine("digest", 22, async |bed: Bed| {
        let registry = LocalRegistry::start().await;
        let note = format!("digest of {}", registry.host);
        let (reference, pushed) = registry.push_guest("d:1", &note).await;
        // Somebody changes a manifest where the registry keeps it.
        let hex = pushed.as_str().trim_start_matches("sha256:");
        let blob = registry
            .storage
            .path()
            .join("docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data");
        let mut changed = std::fs::read(&blob).expect("kept there");
        changed.push(b'\n');
        std::fs::write(&blob, changed).expect("writable");
        let pinned = reference.pinned(pushed);
        let error = bed.engine.pull(&pinned, None, drop).await.expect_err("not what it should be");
        assert_eq!(error.kind(), EngineErrorKind::DigestMismatch, "{error}");
        let error =
            Registry::new(None).expect("client").resolve(&pinned).await.expect_err("the same");
        assert_eq!(error.kind(), "digest", "{error}");
        assert_eq!(bed.engine.image(&pinned).await.expect("asked"), None);
    })
    .await;
}
