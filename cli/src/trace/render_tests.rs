#![allow(clippy::unwrap_used)]
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use super::{Renderer, Style, duration};

#[derive(Clone, Default)]
struct Out(Arc<Mutex<Vec<u8>>>);

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rendered(style: Style, lines: &[&str]) -> String {
    let out = Out::default();
    let mut renderer = Renderer::new(Box::new(out.clone()), style);
    for line in lines {
        renderer.line(line.as_bytes()).unwrap();
    }
    renderer.finish().unwrap();
    let bytes = out.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

const INIT: &str = r#"{"seq":1,"t_ns":0,"ns":1520,"tid":42,"call":"cuInit","class":"local","args":"Flags=0","status":0}"#;
const WAIT: &str = r#"{"seq":2,"t_ns":9,"ns":80000,"tid":42,"call":"cuStreamSynchronize","class":"blocking","args":"hStream=0","status":700,"record":"cuStreamSynchronize","bytes":24,"ticket":5}"#;

#[test]
fn calls_in_columns_and_a_summary() {
    let text = rendered(Style::Plain, &[INIT, WAIT]);
    assert_eq!(
        text,
        "  call   thread       time  class     what
     1       42    1.52 µs  local     cuInit(Flags=0) = 0
     2       42    80.0 µs  blocking  cuStreamSynchronize(hStream=0) = CUDA_ERROR_ILLEGAL_ADDRESS  [cuStreamSynchronize 24 B, reply 5]
farcall: 2 driver calls, 81.5 µs in them
  blocking          1    80.0 µs
  local             1    1.52 µs
  most time: cuStreamSynchronize 80.0 µs in 1, cuInit 1.52 µs in 1
"
    );
}

#[test]
fn only_the_calls_that_were_asked_for() {
    let out = Out::default();
    let renderer = Renderer::new(Box::new(out.clone()), Style::Plain);
    let mut renderer = renderer.only(vec!["cuStreamSynchronize".to_owned()]);
    let late = r#"{"seq":1,"step":"sent","detail":"of a hidden call"}"#;
    for line in [INIT, late, WAIT] {
        renderer.line(line.as_bytes()).unwrap();
    }
    renderer.finish().unwrap();
    let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
    assert!(
        !text.contains("cuInit(") && !text.contains("hidden"),
        "{text}"
    );
    assert!(text.contains("cuStreamSynchronize(hStream=0)"), "{text}");
    assert!(text.contains("2 driver calls"), "{text}");
}

#[test]
fn steps_stand_under_their_call_and_are_explained_once() {
    let sent = |seq: u64| format!(r#"{{"seq":{seq},"step":"sent","detail":"frame {seq}"}}"#);
    let text = rendered(
        Style::Plain,
        &[
            &sent(1),
            &sent(2),
            INIT,
            WAIT,
            r#"{"seq":3,"step":"captured","detail":"cuX"}"#,
        ],
    );
    let at = |part: &str| {
        text.find(part)
            .unwrap_or_else(|| panic!("{part} in {text}"))
    };
    assert!(at("cuInit(") < at("frame 1") && at("frame 1") < at("cuStreamSynchronize("));
    assert!(at("cuStreamSynchronize(") < at("frame 2"));
    assert_eq!(text.matches("the record left for the server").count(), 1);
    assert!(at("did not return") < at("cuX"));

    let late = r#"{"seq":1,"step":"executed","detail":"later"}"#;
    let text = rendered(Style::Plain, &[INIT, late, WAIT]);
    assert!(
        text.find("later") < text.find("cuStreamSynchronize("),
        "{text}"
    );
    assert!(!text.contains("did not return"), "{text}");
}

#[test]
fn cut_lines_are_counted() {
    let text = rendered(Style::Plain, &[INIT, r#"{"seq":2,"call":"cuSt"#, ""]);
    assert!(text.contains("1 lines could not be read"), "{text}");
    assert!(rendered(Style::Plain, &[]).contains("no driver call"));
}

#[test]
fn colours_only_where_they_are_wanted_and_never_the_programs_own() {
    assert!(
        rendered(Style::Coloured, &[WAIT]).contains("\x1b[31mCUDA_ERROR_ILLEGAL_ADDRESS\x1b[0m")
    );
    let hostile = r#"{"seq":1,"call":"cuModuleGetFunction","class":"local","args":"name=\u001b[2J","status":0}"#;
    assert!(!rendered(Style::Plain, &[hostile]).contains('\x1b'));
}

#[test]
fn durations() {
    for (ns, text) in [
        (0, "0 ns"),
        (999, "999 ns"),
        (1_000, "1.00 µs"),
        (12_345, "12.3 µs"),
        (999_999, "999 µs"),
        (1_500_000, "1.50 ms"),
        (3_000_000_000, "3.00 s"),
        (7_200_000_000_000, "7200 s"),
    ] {
        assert_eq!(duration(ns), text);
    }
}
