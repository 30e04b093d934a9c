//! Registrations that are kept, because making one costs more than a small transfer: by interval, counted
//! by those who use them, bounded in bytes. Pure: what a registration is, the caller says.
//!
//! Memory that is freed and mapped again is other memory at the same addresses. So whoever frees memory
//! says so first ([`Cache::forget`]); a registration that is in use then ends with its last user, and is
//! found by nobody before.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ops::{Deref, Range};
use std::sync::{Arc, Weak};

/// Registrations `R` of ranges of addresses.
pub(super) struct Cache<R> {
    bytes_max: usize,
    /// By first address; they do not overlap.
    entries: BTreeMap<usize, Entry<R>>,
    /// Forgotten, and in use when that happened.
    leaving: Vec<(Weak<R>, usize)>,
    clock: u64,
}

struct Entry<R> {
    end: usize,
    registration: Arc<R>,
    /// When it was last asked for.
    used: u64,
}

/// A registration in use. It stays as long as this does.
#[derive(Debug)]
pub(super) struct Lease<R>(Arc<R>);

impl<R> Deref for Lease<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

/// Why there is no registration.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum CacheError<E> {
    /// What is in use leaves no room.
    Full,
    /// It cannot be made.
    Register(E),
}

impl<R> Cache<R> {
    /// Keeps registrations of at most `bytes_max` in sum, those included that are in use.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self {
            bytes_max,
            entries: BTreeMap::new(),
            leaving: Vec::new(),
            clock: 0,
        }
    }

    /// A registration that covers `range`: one that is there, or else what `register` makes, for which
    /// those unused for longest give way. `register` may be called twice: when it fails, once more after
    /// everything unused has gone.
    ///
    /// Allocates only where nothing is found.
    ///
    /// # Errors
    /// [`CacheError`].
    pub(super) fn acquire<E>(
        &mut self,
        range: &Range<usize>,
        mut register: impl FnMut(&Range<usize>) -> Result<R, E>,
    ) -> Result<Lease<R>, CacheError<E>> {
        self.clock += 1;
        let before = self.entries.range_mut(..=range.start).next_back();
        if let Some((_, entry)) = before.filter(|(_, entry)| entry.end >= range.end) {
            entry.used = self.clock;
            return Ok(Lease(Arc::clone(&entry.registration)));
        }
        // Registrations of one place may overlap, but of two it would not be clear which one is meant.
        self.forget(range);
        let wanted = self
            .bytes_max
            .checked_sub(range.len())
            .ok_or(CacheError::Full)?;
        if !self.shrink_to(wanted) {
            return Err(CacheError::Full);
        }
        let made = register(range).or_else(|error| {
            if self.shrink() {
                register(range)
            } else {
                Err(error)
            }
        });
        let registration = Arc::new(made.map_err(CacheError::Register)?);
        self.entries.insert(
            range.start,
            Entry {
                end: range.end,
                registration: Arc::clone(&registration),
                used: self.clock,
            },
        );
        Ok(Lease(registration))
    }

    /// Finds nothing in `range` any more: its memory is about to be freed.
    pub(super) fn forget(&mut self, range: &Range<usize>) {
        let touched: Vec<usize> = self
            .entries
            .range(..range.end)
            .rev()
            .take_while(|(_, entry)| entry.end > range.start)
            .map(|(start, _)| *start)
            .collect();
        for start in touched {
            if let Some(entry) = self.entries.remove(&start) {
                let in_use = Arc::downgrade(&entry.registration);
                drop(entry.registration);
                if in_use.strong_count() > 0 {
                    self.leaving.push((in_use, entry.end - start));
                }
            }
        }
    }

    /// Bytes that are registered.
    pub(super) fn bytes(&mut self) -> usize {
        self.leaving.retain(|(lease, _)| lease.strong_count() > 0);
        let leaving: usize = self.leaving.iter().map(|(_, bytes)| bytes).sum();
        let kept: usize = self
            .entries
            .iter()
            .map(|(start, entry)| entry.end - start)
            .sum();
        leaving + kept
    }

    /// Lets unused ones go, oldest first, until no more than `bytes` are registered; false if that cannot be.
    fn shrink_to(&mut self, bytes: usize) -> bool {
        while self.bytes() > bytes {
            let oldest = self
                .entries
                .iter()
                .filter(|(_, entry)| Arc::strong_count(&entry.registration) == 1)
                .min_by_key(|(_, entry)| entry.used)
                .map(|(start, _)| *start);
            let Some(start) = oldest else {
                return false;
            };
            self.entries.remove(&start);
        }
        true
    }

    /// Lets everything unused go; false if there is nothing.
    fn shrink(&mut self) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|_, entry| Arc::strong_count(&entry.registration) > 1);
        self.entries.len() < before
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::*;
    use proptest::prelude::*;

    const PAGES: usize = 32;
    const PAGES_MAX: usize = 20;

    /// What a device would know: which memory each live registration is of.
    #[derive(Default)]
    struct Device {
        live: RefCell<Vec<(Range<usize>, Vec<u32>)>>,
        made: RefCell<usize>,
    }

    struct Mr {
        device: Rc<Device>,
        range: Range<usize>,
        memory: Vec<u32>,
    }

    impl Mr {
        fn new(device: &Rc<Device>, range: &Range<usize>, memory: &[u32]) -> Self {
            let memory = memory[range.clone()].to_vec();
            device
                .live
                .borrow_mut()
                .push((range.clone(), memory.clone()));
            *device.made.borrow_mut() += 1;
            Self {
                device: Rc::clone(device),
                range: range.clone(),
                memory,
            }
        }
    }

    impl Drop for Mr {
        fn drop(&mut self) {
            let mut live = self.device.live.borrow_mut();
            let own = (self.range.clone(), self.memory.clone());
            let at = live.iter().position(|entry| *entry == own).unwrap();
            live.swap_remove(at);
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Acquire(usize, usize),
        Release(usize),
        /// Freed and mapped anew.
        Reuse(usize, usize),
        /// The system refuses the next registration.
        Refuse(usize, usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = (0..PAGES, 1..PAGES / 2);
        let step = prop_oneof![
            4 => range.clone().prop_map(|(at, len)| Step::Acquire(at, len)),
            3 => any::<usize>().prop_map(Step::Release),
            2 => range.clone().prop_map(|(at, len)| Step::Reuse(at, len)),
            1 => range.prop_map(|(at, len)| Step::Refuse(at, len)),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        /// Against the memory itself: whatever is handed out is of the memory that is there now, stays while
        /// it is used, and never more than the bound is registered.
        #[test]
        fn what_is_handed_out_is_of_the_present_memory(steps in steps()) {
            let device = Rc::new(Device::default());
            let mut memory = vec![0u32; PAGES];
            let mut cache = Cache::new(PAGES_MAX);
            let mut leases: Vec<Lease<Mr>> = Vec::new();
            for step in steps {
                match step {
                    Step::Acquire(at, len) => {
                        let range = at..(at + len).min(PAGES);
                        let make = |range: &Range<usize>| Ok::<_, ()>(Mr::new(&device, range, &memory));
                        match cache.acquire(&range, make) {
                            Ok(lease) => {
                                let inside = range.start - lease.range.start;
                                let covered = lease.memory.get(inside..inside + range.len());
                                prop_assert_eq!(covered, Some(&memory[range.clone()]));
                                let made = *device.made.borrow();
                                drop(cache.acquire(&range, make).unwrap());
                                prop_assert_eq!(*device.made.borrow(), made, "found again");
                                leases.push(lease);
                            }
                            Err(error) => {
                                prop_assert_eq!(error, CacheError::Full);
                                let used: usize = leases_bytes(&leases);
                                prop_assert!(used + range.len() > PAGES_MAX);
                            }
                        }
                    }
                    Step::Release(n) if !leases.is_empty() => {
                        leases.swap_remove(n % leases.len());
                    }
                    Step::Release(_) => {}
                    Step::Reuse(at, len) => {
                        let range = at..(at + len).min(PAGES);
                        cache.forget(&range);
                        memory[range].iter_mut().for_each(|page| *page += 1);
                    }
                    Step::Refuse(at, len) => {
                        let range = at..(at + len).min(PAGES);
                        let made = *device.made.borrow();
                        let got = cache.acquire(&range, |_| Err::<Mr, _>(12)).map(drop);
                        prop_assert_eq!(*device.made.borrow(), made);
                        prop_assert!(got != Err(CacheError::Register(0)));
                    }
                }
                let live: usize = device.live.borrow().iter().map(|(range, _)| range.len()).sum();
                prop_assert!(live <= PAGES_MAX);
                prop_assert_eq!(live, cache.bytes());
                for lease in &leases {
                    let own = (lease.range.clone(), lease.memory.clone());
                    prop_assert!(device.live.borrow().contains(&own));
                }
            }
            cache.forget(&(0..PAGES));
            prop_assert_eq!(device.live.borrow().len(), distinct(&leases));
            drop(leases);
            prop_assert!(device.live.borrow().is_empty());
        }
    }

    fn distinct(leases: &[Lease<Mr>]) -> usize {
        let mut seen: Vec<*const Mr> = leases.iter().map(|lease| &raw const **lease).collect();
        seen.sort();
        seen.dedup();
        seen.len()
    }

    fn leases_bytes(leases: &[Lease<Mr>]) -> usize {
        let mut seen: Vec<_> = leases
            .iter()
            .map(|lease| (&raw const **lease, lease.range.len()))
            .collect();
        seen.sort();
        seen.dedup();
        seen.into_iter().map(|(_, bytes)| bytes).sum()
    }

    #[test]
    fn the_one_unused_for_longest_gives_way_and_a_refusal_frees_everything_unused() {
        let device = Rc::new(Device::default());
        let memory = vec![0; PAGES];
        let make = |range: &Range<usize>| Ok::<_, ()>(Mr::new(&device, range, &memory));
        let mut cache = Cache::new(9);
        for at in [0, 4, 0, 8] {
            drop(cache.acquire(&(at..at + 4), make).unwrap());
        }
        let starts = || {
            let mut starts: Vec<usize> =
                device.live.borrow().iter().map(|(r, _)| r.start).collect();
            starts.sort_unstable();
            starts
        };
        assert_eq!(starts(), [0, 8]);
        let held = cache.acquire(&(8..12), make).unwrap();
        let mut refusals = 1;
        let refuse_once = |range: &Range<usize>| {
            if refusals > 0 {
                refusals -= 1;
                return Err(());
            }
            Ok(Mr::new(&device, range, &memory))
        };
        drop(
            cache
                .acquire(&(16..17), refuse_once)
                .map_err(drop)
                .unwrap_or_else(|()| panic!()),
        );
        assert_eq!(starts(), [8, 16]);
        drop(held);
    }
}
