//! The linker: what a program adds is kept here, and put together when it is complete. The device's compiler sees the result when
//! it is loaded.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

/// One input.
pub(crate) enum Input {
    /// PTX, without a NUL.
    Ptx(String),
    /// Machine code or a container of images.
    Code(Vec<u8>),
}

/// A linker that the program holds.
#[derive(Default)]
pub(crate) struct Linker {
    inputs: Mutex<Vec<Input>>,
    /// What was linked, which the program looks at in place.
    linked: Mutex<Option<Vec<u8>>>,
}

impl Linker {
    pub(crate) fn add(&self, input: Input) -> CuResult {
        if self.linked.lock().is_some() {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.inputs.lock().push(input);
        Ok(())
    }

    /// Puts the inputs together; where the result lies as long as the linker does, and how long it is.
    ///
    /// # Errors
    /// `INVALID_IMAGE`: no input. `NOT_SUPPORTED`: machine code and something else.
    pub(crate) fn complete(&self) -> CuResult<(*const u8, usize)> {
        let mut linked = self.linked.lock();
        if linked.is_none() {
            *linked = Some(link(&self.inputs.lock())?);
        }
        let image = linked.as_ref().ok_or(CuStatus::UNKNOWN)?;
        Ok((image.as_ptr(), image.len()))
    }
}

fn link(inputs: &[Input]) -> CuResult<Vec<u8>> {
    match inputs {
        [] => Err(CuStatus::INVALID_IMAGE),
        [Input::Code(bytes)] => Ok(bytes.clone()),
        inputs => {
            let mut texts = Vec::new();
            for input in inputs {
                match input {
                    Input::Ptx(text) => texts.push(text.as_str()),
                    Input::Code(_) => {
                        log::error!(
                            "cuLinkComplete: machine code can be linked alone only; PTX with PTX"
                        );
                        return Err(CuStatus::NOT_SUPPORTED);
                    }
                }
            }
            let mut image = merge(&texts).into_bytes();
            image.push(0);
            Ok(image)
        }
    }
}

/// One PTX text of several: the head that asks for most, then the bodies.
fn merge(texts: &[&str]) -> String {
    if let [text] = texts {
        return (*text).to_owned();
    }
    let directive = |line: &str| {
        [".version", ".target", ".address_size"]
            .into_iter()
            .find(|word| line.trim_start().starts_with(word))
    };
    let (mut version, mut target) = ((0, 0), "");
    let (mut target_number, mut body) = (0, String::new());
    for line in texts.iter().flat_map(|text| text.lines()) {
        let rest = |word: &str| line.trim_start().trim_start_matches(word).trim();
        match directive(line) {
            Some(word @ ".version") => version = version.max(version_of(rest(word))),
            Some(word @ ".target") => {
                let digits: String = rest(word).chars().filter(char::is_ascii_digit).collect();
                let number = digits.parse().unwrap_or(0);
                if target.is_empty() || number > target_number {
                    (target, target_number) = (rest(word), number);
                }
            }
            Some(_) => {}
            None => {
                body.push_str(line);
                body.push('\n');
            }
        }
    }
    let (major, minor) = version;
    format!(".version {major}.{minor}\n.target {target}\n.address_size 64\n{body}")
}

fn version_of(text: &str) -> (u32, u32) {
    let mut parts = text.split(|c: char| !c.is_ascii_digit());
    let mut next = || parts.next().and_then(|part| part.parse().ok()).unwrap_or(0);
    (next(), next())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Input, Linker, merge};

    #[test]
    fn texts_are_merged_under_the_newest_head() {
        let first = ".version 7.8\n.target sm_80\n.address_size 64\n.func a() { ret; }\n";
        let second = ".version 8.0\n.target sm_70\n.address_size 64\n.func b() { ret; }\n";
        let merged = merge(&[first, second]);
        let expected = ".version 8.0\n.target sm_80\n.address_size 64\n.func a() { ret; }\n.func b() { ret; }\n";
        assert_eq!(merged, expected);
        assert_eq!(merge(&[first]), first);
    }

    #[test]
    fn a_complete_linker_takes_nothing_more() {
        let linker = Linker::default();
        assert!(linker.complete().is_err(), "nothing to link");
        linker.add(Input::Code(vec![1, 2, 3])).unwrap();
        let (first, len) = linker.complete().unwrap();
        assert_eq!((linker.complete().unwrap(), len), ((first, 3), 3));
        assert!(linker.add(Input::Code(Vec::new())).is_err());
        let mixed = Linker::default();
        mixed.add(Input::Code(vec![1])).unwrap();
        mixed.add(Input::Ptx(String::new())).unwrap();
        assert!(mixed.complete().is_err());
    }
}
