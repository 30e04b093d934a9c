//! The library as programs load it.
#![allow(dead_code, clippy::unwrap_used)]

pub(crate) mod server;

use libloading::{Library, Symbol};
use std::ffi::{CStr, c_char};

/// `libnvidia-ml.so.1`, loaded.
pub(crate) struct Nvml(Library);

impl Nvml {
    pub(crate) fn load() -> Self {
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().join("libnvidia_ml.so");
        // SAFETY: our own library; loading it runs no code.
        Self(unsafe { Library::new(&path) }.unwrap())
    }

    pub(crate) fn get<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the tests name the type that nvml.h declares.
        unsafe { self.0.get(name) }.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A function without arguments, or one that does not look at them.
    pub(crate) fn call(&self, name: &str) -> u32 {
        self.get::<extern "C" fn() -> u32>(name)()
    }

    /// A text that a function writes for a device.
    pub(crate) fn text_of(&self, name: &str, device: usize, length: u32) -> Result<String, u32> {
        let function = self.get::<extern "C" fn(usize, *mut c_char, u32) -> u32>(name);
        read(length, |at| function(device, at, length))
    }

    pub(crate) fn system_text(&self, name: &str) -> Result<String, u32> {
        let function = self.get::<extern "C" fn(*mut c_char, u32) -> u32>(name);
        read(80, |at| function(at, 80))
    }

    /// One value that a function writes for a device.
    pub(crate) fn value_of<T: Default>(&self, name: &str, device: usize) -> Result<T, u32> {
        let function = self.get::<extern "C" fn(usize, *mut T) -> u32>(name);
        let mut value = T::default();
        match function(device, &raw mut value) {
            0 => Ok(value),
            status => Err(status),
        }
    }
}

fn read(length: u32, call: impl Fn(*mut c_char) -> u32) -> Result<String, u32> {
    let mut buffer = vec![c_char::MAX; length as usize + 1];
    match call(buffer.as_mut_ptr()) {
        0 => {
            assert_eq!(
                buffer.last(),
                Some(&c_char::MAX),
                "nothing is written behind the buffer"
            );
            // SAFETY: the function ended the text with a NUL within the buffer.
            Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }
                .to_str()
                .unwrap()
                .to_owned())
        }
        status => Err(status),
    }
}
