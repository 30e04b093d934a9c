//! Copies between GPUs of two servers.

use super::*;

const SECRET: [u8; 16] = [5; 16];

#[test]
fn bytes_go_from_gpu_to_gpu_in_the_order_of_their_streams() {
    let ((here, _here_folder), (there, _there_folder)) = (server(), server());
    let (from, to) = (client(&here), client(&there));
    for side in [&from, &to] {
        assert_eq!(side.alloc(0, 24 * MIB), 0);
    }
    let (link, secret) = (3, &SECRET[..]);
    assert_eq!(to.call(&PeerAccept { link, secret }).0, 0);
    let connect = PeerConnect {
        peer: link,
        address: &there.address,
        session: &to.endpoint.session().0,
        secret,
    };
    assert_eq!(from.call(&connect).0, 0);
    let data = pattern(20 << 20, 9);
    assert_eq!(from.upload(from.base(), &data), 0);
    // Both ends wait for their own streams first.
    from.launch(HOLD, STREAM, 1, 1, &[]);
    from.launch(SET, STREAM, 1, 1, &set(from.base(), 77, 1));
    to.launch(HOLD, STREAM, 1, 1, &[]);
    let (mut sent, mut written) = (Vec::new(), Vec::new());
    for (bulk, at) in [(100, 0), (101, 4 * MIB), (102, 8 * MIB), (103, 12 * MIB)] {
        // The last one is longer than pinned memory is lent to one transfer.
        let count = if bulk == 103 { 12 * MIB } else { 4 * MIB };
        to.send(&PeerExpect {
            bulk,
            link,
            byte_count: count,
            secret,
        });
        written.push(to.begin(&CuMemcpyHtoDAsyncV2 {
            dst: to.base() + at,
            count,
            stream: STREAM,
            bulk,
            data: &[],
        }));
        from.send(&PeerPush {
            bulk: bulk + 100,
            peer: link,
            to: bulk,
            secret,
        });
        sent.push(from.begin(&CuMemcpyDtoHAsyncV2 {
            src: from.base() + at,
            count,
            stream: STREAM,
            bulk: bulk + 100,
        }));
    }
    assert_eq!(from.call(&CuStreamQuery { stream: STREAM }).0, NOT_READY);
    from.launch(RELEASE, OTHER, 1, 1, &[]);
    assert_eq!(to.call(&CuStreamQuery { stream: STREAM }).0, NOT_READY);
    to.launch(RELEASE, OTHER, 1, 1, &[]);
    for ticket in sent {
        assert_eq!(from.wait(ticket).unwrap().0, 0);
    }
    for ticket in written {
        assert_eq!(to.wait(ticket).unwrap().0, 0);
    }
    let got = to.download(to.base(), 20 << 20).unwrap();
    assert_eq!(got[..4], 77_u32.to_le_bytes(), "what the stream did before");
    assert!(got[4..] == data[4..]);
}
