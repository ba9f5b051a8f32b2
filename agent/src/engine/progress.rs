//! Shows a pull: bars on a terminal, otherwise a log line per image at each
//! tenth, and every few seconds while bytes move.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use super::docker::LayerEvent;
use super::pull::{PullEvent, PullNews};
use crate::registry::Reference;

/// Between two lines about an image that moves by less than a tenth.
const QUIET: Duration = Duration::from_secs(5);

/// How to show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Show {
    /// Bars on stderr.
    Terminal,
    /// Log lines.
    Lines,
}

/// Shows what comes until all senders are gone. Room for a few hundred events
/// in the channel keeps it complete.
pub async fn show(mut news: mpsc::Receiver<PullEvent>, how: Show) {
    let mut images: BTreeMap<Reference, Image> = BTreeMap::new();
    let mut bars = matches!(how, Show::Terminal).then(Bars::new);
    while let Some(event) = news.recv().await {
        let image = images.entry(event.image.clone()).or_default();
        image.take(&event.news);
        match &mut bars {
            Some(bars) => bars.show(&event, image),
            None => image.log(&event, Instant::now()),
        }
    }
}

/// What is known of one image's pull.
#[derive(Debug, Default)]
struct Image {
    layers: BTreeMap<String, Layer>,
    logged: Option<(u64, Instant)>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Layer {
    current: u64,
    total: u64,
    done: bool,
}

impl Image {
    fn take(&mut self, news: &PullNews) {
        match news {
            PullNews::Layer(event) if is_layer(event) => {
                let layer = self.layers.entry(event.layer.clone()).or_default();
                match event.status.as_str() {
                    "Downloading" => {
                        layer.current = event.current.unwrap_or(layer.current);
                        layer.total = event.total.unwrap_or(layer.total);
                    }
                    "Download complete" | "Pull complete" | "Already exists" => {
                        layer.current = layer.total;
                        layer.done = true;
                    }
                    _ => {}
                }
            }
            PullNews::Started => *self = Self::default(),
            PullNews::Layer(_) | PullNews::Present | PullNews::Done | PullNews::Failed(_) => {}
        }
    }

    /// Bytes here, bytes announced.
    fn bytes(&self) -> (u64, u64) {
        self.layers
            .values()
            .fold((0, 0), |(current, total), layer| (current + layer.current, total + layer.total))
    }

    fn layers_done(&self) -> usize {
        self.layers.values().filter(|layer| layer.done).count()
    }

    fn log(&mut self, event: &PullEvent, now: Instant) {
        let image = &event.image;
        match &event.news {
            PullNews::Present => info!(%image, "image is here already"),
            PullNews::Started => info!(%image, "pulling image"),
            PullNews::Done => {
                info!(%image, layers = self.layers.len(), bytes = self.bytes().1, "image pulled");
            }
            PullNews::Failed(error) => {
                warn!(%image, kind = error.kind().as_str(), %error, "pulling image failed");
            }
            PullNews::Layer(_) => {
                if self.is_worth_a_line(now) {
                    let (bytes, of) = self.bytes();
                    info!(%image, bytes, of, layers = self.layers.len(), done = self.layers_done(), "pulling image");
                }
            }
        }
    }

    fn is_worth_a_line(&mut self, now: Instant) -> bool {
        let (current, total) = self.bytes();
        let Some(tenth) = (current * 10).checked_div(total) else {
            return false;
        };
        let is_news = match self.logged {
            None => true,
            Some((before, at)) => tenth > before || now.duration_since(at) >= QUIET,
        };
        if is_news {
            self.logged = Some((tenth, now));
        }
        is_news
    }
}

/// News of the image as a whole ("Pulling from a/b", "Digest: ...") carries the
/// tag in the layer's place, or nothing.
fn is_layer(event: &LayerEvent) -> bool {
    event.layer.len() == 12 && event.layer.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The bars: one per image, and one per layer while it moves.
struct Bars {
    all: MultiProgress,
    images: BTreeMap<Reference, ProgressBar>,
    layers: BTreeMap<(Reference, String), ProgressBar>,
}

impl Bars {
    fn new() -> Self {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
        Self { all, images: BTreeMap::new(), layers: BTreeMap::new() }
    }

    fn show(&mut self, event: &PullEvent, image: &Image) {
        let bar = self.images.entry(event.image.clone()).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{prefix:44} {bar:24} {bytes:>10} of {total_bytes:10} {msg}",
            );
            let bar = ProgressBar::new(0).with_style(style.expect("a valid template"));
            bar.set_prefix(short_name(&event.image));
            self.all.add(bar)
        });
        let (current, total) = image.bytes();
        bar.set_length(total);
        bar.set_position(current);
        match &event.news {
            PullNews::Present => bar.finish_with_message("already here"),
            PullNews::Started => bar.set_message("waiting"),
            PullNews::Done => bar.finish_with_message("done"),
            PullNews::Failed(error) => {
                bar.set_message(format!("failed: {}", error.kind().as_str()));
            }
            PullNews::Layer(layer) if is_layer(layer) => {
                bar.set_message(format!(
                    "{} of {} layers",
                    image.layers_done(),
                    image.layers.len()
                ));
                let (bar, key) = (bar.clone(), (event.image.clone(), layer.layer.clone()));
                self.layer(&bar, key, layer);
            }
            PullNews::Layer(_) => {}
        }
        if matches!(event.news, PullNews::Done | PullNews::Failed(_)) {
            self.layers.retain(|(image, _), bar| {
                let keep = *image != event.image;
                if !keep {
                    bar.finish_and_clear();
                }
                keep
            });
        }
    }

    fn layer(&mut self, after: &ProgressBar, key: (Reference, String), event: &LayerEvent) {
        let is_moving = matches!(event.status.as_str(), "Downloading" | "Extracting");
        if !is_moving {
            if let Some(bar) = self.layers.remove(&key) {
                bar.finish_and_clear();
                self.all.remove(&bar);
            }
            return;
        }
        let bar = self.layers.entry(key).or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "  {prefix:12} {bar:24} {bytes:>10} of {total_bytes:10} {msg}",
            );
            let bar = ProgressBar::new(0).with_style(style.expect("a valid template"));
            bar.set_prefix(event.layer.clone());
            self.all.insert_after(after, bar)
        });
        bar.set_message(event.status.clone());
        bar.set_length(event.total.unwrap_or(0));
        bar.set_position(event.current.unwrap_or(0));
    }
}

/// What tells images of a release apart: the last word and the tag.
fn short_name(image: &Reference) -> String {
    let word = image.path().rsplit('/').next().unwrap_or_default();
    match image.tag() {
        Some(tag) => format!("{word}:{tag}"),
        None => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(id: &str, status: &str, current: u64, total: u64) -> PullNews {
        PullNews::Layer(LayerEvent {
            layer: id.to_owned(),
            status: status.to_owned(),
            current: Some(current),
            total: Some(total).filter(|total| *total > 0),
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_at_each_tenth_and_every_few_seconds() {
        let mut image = Image::default();
        let start = Instant::now();
        image.take(&layer("latest", "Pulling from a/b", 0, 0));
        assert!(!image.is_worth_a_line(start), "nothing moved yet");
        image.take(&layer("0123456789ab", "Downloading", 1, 1000));
        assert!(image.is_worth_a_line(start));
        image.take(&layer("0123456789ab", "Downloading", 99, 1000));
        assert!(!image.is_worth_a_line(start));
        assert!(image.is_worth_a_line(start + QUIET));
        image.take(&layer("0123456789ab", "Downloading", 100, 1000));
        assert!(image.is_worth_a_line(start + QUIET));
        image.take(&layer("0123456789ab", "Pull complete", 0, 0));
        assert_eq!((image.bytes(), image.layers_done()), ((1000, 1000), 1));
        image.take(&PullNews::Started);
        assert_eq!(image.bytes(), (0, 0), "a new try counts from the start");
    }

    #[tokio::test]
    async fn both_ways_of_showing_end_with_the_senders() {
        for how in [Show::Lines, Show::Terminal] {
            let (tell, news) = mpsc::channel(16);
            let image: Reference = "a/b:1".parse().expect("reference");
            let all = [
                PullNews::Started,
                layer("0123456789ab", "Downloading", 1, 2),
                layer("0123456789ab", "Pull complete", 0, 0),
                PullNews::Done,
            ];
            for news in all {
                tell.send(PullEvent { image: image.clone(), news }).await.expect("open");
            }
            drop(tell);
            show(news, how).await;
        }
    }
}
