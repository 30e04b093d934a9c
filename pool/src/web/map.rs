//! GPUs as bars, filled by the shares of their clients.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::format::gpus;
use crate::model::WHOLE_PERMILLE;
use crate::state::views::GpuView;

/// Clients with a colour of their own; all others share one.
const COLOURS: usize = 7;
const BAR: u32 = 40;
const GAP: u32 = 4;
const HEIGHT: u32 = 20;

/// Which client has which colour.
#[derive(Debug, Default)]
pub(crate) struct Colours(BTreeMap<String, usize>);

impl Colours {
    /// Of the `shown` whole, the most to those who hold the most.
    pub(crate) fn of(gpus: &[GpuView]) -> Self {
        let mut held: BTreeMap<&str, u64> = BTreeMap::new();
        for part in gpus.iter().flat_map(|gpu| &gpu.parts) {
            *held.entry(&part.client).or_default() += u64::from(part.share_permille);
        }
        let mut order: Vec<(&str, u64)> = held.into_iter().collect();
        order.sort_by_key(|(name, held)| (std::cmp::Reverse(*held), *name));
        let first = order.into_iter().take(COLOURS).zip(0..);
        Self(
            first
                .map(|((name, _), index)| (name.to_owned(), index))
                .collect(),
        )
    }

    /// Number of a client's colour.
    pub(crate) fn get(&self, client: &str) -> usize {
        self.0.get(client).copied().unwrap_or(COLOURS)
    }
}

/// What a colour means.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) colour: usize,
    pub(crate) client: String,
    pub(crate) held: String,
}

/// The legend: clients with a colour, and the others together (without a name).
pub(crate) fn keys(gpu_views: &[GpuView], colours: &Colours) -> Vec<Key> {
    let mut held: BTreeMap<(usize, &str), u64> = BTreeMap::new();
    for part in gpu_views.iter().flat_map(|gpu| &gpu.parts) {
        let colour = colours.get(&part.client);
        let name = if colour < COLOURS {
            part.client.as_str()
        } else {
            ""
        };
        *held.entry((colour, name)).or_default() += u64::from(part.share_permille);
    }
    let key = |((colour, client), held): ((usize, &str), u64)| Key {
        colour,
        client: client.to_owned(),
        held: gpus(held),
    };
    held.into_iter().map(key).collect()
}

/// The bars of one server's GPUs.
#[derive(Debug)]
pub(crate) struct Bars {
    pub(crate) width: u32,
    pub(crate) spoken: String,
    pub(crate) drawing: String,
}

/// Draws the GPUs of one server. One path for each colour keeps a large cluster's page small.
pub(crate) fn bars(gpu_views: &[GpuView], colours: &Colours) -> Bars {
    let mut paths: BTreeMap<&'static str, String> = BTreeMap::new();
    let mut held = 0;
    let mut usable = 0;
    for (gpu, index) in gpu_views.iter().zip(0..) {
        let left = index * (BAR + GAP);
        usable += usize::from(gpu.usable);
        let ground = if gpu.usable { "g" } else { "x" };
        rectangle(paths.entry(ground).or_default(), left, BAR);
        let mut begin = 0;
        for part in &gpu.parts {
            let end = begin + u32::from(part.share_permille);
            held += u64::from(part.share_permille);
            let (from, to) = (scaled(begin), scaled(end));
            let path = paths.entry(CLASSES[colours.get(&part.client)]).or_default();
            // Shares of the same client stay apart.
            rectangle(path, left + from, (to - from).saturating_sub(1).max(1));
            begin = end;
        }
    }
    let mut drawing = String::new();
    // The ground comes first: "c0".."c7" are drawn over "g" and "x".
    for ground in [true, false] {
        for (class, path) in paths.iter().filter(|(it, _)| it.starts_with('c') != ground) {
            let _ = write!(drawing, "<path class={class} d=\"{path}\"/>");
        }
    }
    let count = gpu_views.len();
    Bars {
        width: u32::try_from(count).unwrap_or(0) * (BAR + GAP),
        spoken: format!("{} of {usable} usable GPUs held", gpus(held)),
        drawing,
    }
}

const CLASSES: [&str; COLOURS + 1] = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7"];

fn scaled(permille: u32) -> u32 {
    permille * BAR / u32::from(WHOLE_PERMILLE)
}

fn rectangle(path: &mut String, left: u32, width: u32) {
    let _ = write!(path, "M{left} 0h{width}v{HEIGHT}h-{width}z");
}
