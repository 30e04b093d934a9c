//! What is counted where device time is measured.

use std::io::Write as _;

use farcall_gpu_exec::ServerUsage;

use super::*;

/// A graph whose kernel is still being compiled is looked at whenever anything happens, and counts once, when it is launched.
#[test]
fn a_graph_that_waits_for_its_module_counts_once() {
    let folder = driver();
    let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
    command.arg("cuda").env("LD_LIBRARY_PATH", folder.path());
    command.env("TEST_MEASURE", "1").env("FAKE_LOAD_MS", "500");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    let server = ServerProcess { child, address };
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    let image = ".version 8.0 // set .slow";
    let packed = farcall_marshal::image::compress_for_wire(image.as_bytes());
    let hash = farcall_marshal::image::content_hash(image.as_bytes());
    client.send(&CuModuleLoadData {
        module: 51,
        kind: 1,
        total_bytes: packed.len() as u64,
        bulk: 0,
        hash: &hash,
        image: &packed,
    });
    client.send(&CuModuleGetFunction {
        function: 52,
        module: 51,
        name: "set",
    });
    let params = set(base, 7, 1);
    let head = farcall_marshal::record::Head::request(CuLaunchKernel::NUMBER, CONTEXT, 0);
    let node = farcall_marshal::record::to_vec(head, &launch(52, 0, 1, 1, &params));
    client.send(&CuGraphInstantiateWithFlags {
        exec: 60,
        flags: 0,
        node_count: 1,
        node_bytes: node.len() as u64,
        edge_count: 0,
        bulk: 0,
        data: &node,
    });
    let done = client.begin(&CuGraphLaunch {
        exec: 60,
        stream: STREAM,
    });
    // Each of these lets what waits be looked at.
    for _ in 0..20 {
        assert_eq!(client.call(&read(base, 4, OTHER)).0, 0);
    }
    assert_eq!(client.wait(done).unwrap().0, 0);
    assert_eq!(client.synchronize(), 0);
    assert_eq!(client.download(base, 4).unwrap(), [7, 0, 0, 0]);
    let mut usage = || {
        writeln!(stdin, "usage").unwrap();
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        serde_json::from_str::<ServerUsage>(&line).unwrap()
    };
    // The marker behind it is looked for by a thread of its own.
    while usage().devices[0].kernels == 0 {}
    assert_eq!(usage().devices[0].kernels, 1);
}
