//! One line of the shim's trace.
#![forbid(unsafe_code)]

use serde::Deserialize;

/// A line that says something.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Call(Call),
    Step(Step),
}

/// A call that has returned to the program.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Call {
    pub(crate) seq: u64,
    /// Since the trace began.
    pub(crate) t_ns: u64,
    /// How long the program was in it.
    pub(crate) ns: u64,
    pub(crate) tid: u32,
    pub(crate) call: String,
    pub(crate) class: String,
    pub(crate) args: String,
    pub(crate) status: u32,
    /// What was sent for it; empty if nothing was.
    pub(crate) record: String,
    pub(crate) bytes: u64,
    /// Not 0 if the call waited for a reply.
    pub(crate) ticket: u64,
}

/// A step on a call's way.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(crate) struct Step {
    pub(crate) seq: u64,
    pub(crate) step: String,
    pub(crate) detail: String,
}

/// What `bytes` say; `None` for an empty line or one that is cut. Fields that we do not know are passed over.
pub(crate) fn parse(bytes: &[u8]) -> Option<Line> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    if value.get("step").is_some() {
        return serde_json::from_value(value).ok().map(Line::Step);
    }
    value.get("call")?;
    serde_json::from_value(value).ok().map(Line::Call)
}

#[cfg(test)]
mod tests {
    use super::{Call, Line, Step, parse};

    #[test]
    fn lines() {
        let call = br#"{"seq":7,"t_ns":10,"ns":1500,"tid":3,"call":"cuInit","class":"local","args":"Flags=0","status":0,"new":{"x":1}}"#;
        let expected = Call {
            seq: 7,
            t_ns: 10,
            ns: 1500,
            tid: 3,
            call: "cuInit".to_owned(),
            class: "local".to_owned(),
            args: "Flags=0".to_owned(),
            ..Call::default()
        };
        assert_eq!(parse(call), Some(Line::Call(expected)));
        let step = Step {
            seq: 7,
            step: "sent".to_owned(),
            detail: "64 bytes".to_owned(),
        };
        assert_eq!(
            parse(br#"{"seq":7,"step":"sent","detail":"64 bytes"}"#),
            Some(Line::Step(step))
        );
    }

    #[test]
    fn what_is_cut_or_foreign_says_nothing() {
        for bytes in [
            &b""[..],
            b"\n",
            br#"{"seq":7,"call":"cuIn"#,
            b"[]",
            b"{}",
            b"\xff\xfe",
            br#"{"seq":-1,"call":"cuInit"}"#,
        ] {
            assert_eq!(parse(bytes), None);
        }
    }
}
