//! Objects of the program whose lifetime a graph shares.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

/// An object and how many references there are to it.
pub(crate) struct UserObject {
    /// `CUhostFn` that ends it.
    pub(crate) destroy: usize,
    pub(crate) object: u64,
    count: Mutex<u32>,
}

impl UserObject {
    pub(crate) fn new(object: u64, destroy: usize, count: u32) -> Self {
        Self {
            destroy,
            object,
            count: Mutex::new(count),
        }
    }

    /// More references.
    ///
    /// # Errors
    /// `INVALID_VALUE`: too many.
    pub(crate) fn retain(&self, more: u32) -> CuResult {
        let mut count = self.count.lock();
        *count = count.checked_add(more).ok_or(CuStatus::INVALID_VALUE)?;
        Ok(())
    }

    /// Fewer references; whether those were the last, so that the object has to be ended.
    ///
    /// # Errors
    /// `INVALID_VALUE`: there are not so many.
    pub(crate) fn release(&self, fewer: u32) -> CuResult<bool> {
        let mut count = self.count.lock();
        *count = count.checked_sub(fewer).ok_or(CuStatus::INVALID_VALUE)?;
        Ok(*count == 0)
    }
}

/// The references of a graph or of an executable one.
#[derive(Default)]
pub(crate) struct References(Mutex<Vec<(Arc<UserObject>, u32)>>);

impl References {
    /// References that the graph takes over.
    pub(crate) fn add(&self, object: Arc<UserObject>, count: u32) {
        let mut list = self.0.lock();
        match list
            .iter_mut()
            .find(|(known, _)| Arc::ptr_eq(known, &object))
        {
            Some((_, have)) => *have += count,
            None => list.push((object, count)),
        }
    }

    /// Takes references back out.
    ///
    /// # Errors
    /// `INVALID_VALUE`: the graph has not so many.
    pub(crate) fn take(&self, object: &Arc<UserObject>, count: u32) -> CuResult {
        let mut list = self.0.lock();
        let entry = list
            .iter_mut()
            .find(|(known, have)| Arc::ptr_eq(known, object) && *have >= count);
        let (_, have) = entry.ok_or(CuStatus::INVALID_VALUE)?;
        *have -= count;
        list.retain(|(_, have)| *have > 0);
        Ok(())
    }

    /// The objects and how many references to each.
    pub(crate) fn list(&self) -> Vec<(Arc<UserObject>, u32)> {
        self.0.lock().clone()
    }

    /// Whether there are any.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Gives all back; the objects that have to be ended.
    pub(crate) fn clear(&self) -> Vec<Arc<UserObject>> {
        let list = std::mem::take(&mut *self.0.lock());
        list.into_iter()
            .filter(|(object, count)| object.release(*count).unwrap_or(false))
            .map(|(object, _)| object)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::{References, UserObject};

    #[test]
    fn the_last_reference_ends_the_object() {
        let object = Arc::new(UserObject::new(1, 2, 2));
        let graph = References::default();
        graph.add(Arc::clone(&object), 1);
        let copy = References::default();
        for (object, count) in graph.list() {
            object.retain(count).unwrap();
            copy.add(object, count);
        }
        assert!(graph.clear().is_empty());
        assert!(!object.release(1).unwrap());
        assert_eq!(copy.clear().len(), 1);
        assert!(object.release(1).is_err());
        assert!(copy.take(&object, 1).is_err());
    }
}
