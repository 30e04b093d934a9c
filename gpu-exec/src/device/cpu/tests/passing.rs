//! Launches that do nothing.
use super::*;

fn launch(function: u64, stream: u64, grid_x: u32) -> CuLaunchKernel<'static> {
    CuLaunchKernel {
        function,
        stream,
        grid_x,
        grid_y: 1,
        grid_z: 1,
        block_x: 1,
        block_y: 1,
        block_z: 1,
        shared_bytes: 0,
        flags: 0,
        params: &[0; 28],
    }
}

fn rig() -> Rig {
    let mut rig = Rig::new(false);
    rig.streams(0, &[10]);
    rig.streams(1, &[11]);
    assert_eq!(rig.load(1, "whatever"), (0, String::new()));
    let named = CuModuleGetFunction {
        function: 5,
        module: 1,
        name: "kernel",
    };
    assert_eq!(rig.call(&named), 0);
    rig
}

#[test]
fn they_pass_only_where_nothing_is_in_their_way() {
    let mut rig = rig();
    for stream in [0, 10, 11] {
        rig.send(&launch(5, stream, 1));
        assert_eq!(rig.call(&CuStreamQuery { stream }), 0, "{stream}");
    }
    rig.hold(10, 1);
    for stream in [10, 0, 11] {
        rig.send(&launch(5, stream, 1));
    }
    let query = |rig: &mut Rig, stream| rig.call(&CuStreamQuery { stream });
    assert_eq!(query(&mut rig, 10), NOT_READY, "behind what holds it");
    assert_eq!(query(&mut rig, 0), NOT_READY, "behind a blocking stream");
    assert_eq!(query(&mut rig, 11), 0, "waits for nobody");
    rig.release(10, 1);
    for stream in [10, 0] {
        assert_eq!(rig.call(&CuStreamSynchronize { stream }), 0, "{stream}");
    }
    assert!(rig.heard.notices().is_empty());
}

#[test]
fn an_event_behind_one_is_reached() {
    let mut rig = rig();
    assert_eq!(rig.call(&CuEventCreate { event: 1, flags: 0 }), 0);
    rig.hold(11, 1);
    rig.send(&launch(5, 11, 1));
    let record = CuEventRecordWithFlags {
        event: 1,
        stream: 11,
        flags: 0,
    };
    rig.send(&record);
    assert_eq!(rig.call(&CuEventQuery { event: 1 }), NOT_READY);
    rig.release(11, 1);
    assert_eq!(rig.call(&CuEventSynchronize { event: 1 }), 0);
    rig.send(&launch(5, 11, 1));
    rig.send(&record);
    assert_eq!(rig.call(&CuEventQuery { event: 1 }), 0);
}

#[test]
fn what_cannot_be_launched_is_told() {
    let mut rig = rig();
    for (function, stream, grid_x) in [(5, 10, 0), (6, 10, 1), (5, 99, 1)] {
        rig.send(&launch(function, stream, grid_x));
    }
    let statuses: Vec<u32> = rig.heard.notices().iter().map(|notice| notice.0).collect();
    let handle = CuStatus::INVALID_HANDLE.0;
    assert_eq!(statuses, [CuStatus::INVALID_VALUE.0, handle, handle]);
    let ticket = rig.begin(&launch(5, 10, 1));
    assert_eq!(rig.heard.reply(ticket).0, 0, "who waits is answered");
}
