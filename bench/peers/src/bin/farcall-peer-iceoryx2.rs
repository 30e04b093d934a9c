//! A round trip over iceoryx2: publish and subscribe each way, both sides polling.
#![forbid(unsafe_code)]

use std::error::Error;
use std::hint::spin_loop;
use std::io::Read;

use farcall_bench_peers::{Arguments, measure};
use iceoryx2::port::publisher::Publisher;
use iceoryx2::port::subscriber::Subscriber;
use iceoryx2::prelude::*;

type Out = Publisher<ipc::Service, [u8], ()>;
type In = Subscriber<ipc::Service, [u8], ()>;

/// Both directions, from one side.
fn open(arguments: &Arguments) -> Result<(Out, In), Box<dyn Error>> {
    let node = NodeBuilder::new().create::<ipc::Service>()?;
    let service = |way: &str| -> Result<_, Box<dyn Error>> {
        let name = format!("farcall-peer-{}-{way}", arguments.port);
        let service = node.service_builder(&name.as_str().try_into()?);
        Ok(service.publish_subscribe::<[u8]>().open_or_create()?)
    };
    let (there, back) = (service("there")?, service("back")?);
    let (out, into) = if arguments.is_client {
        (there, back)
    } else {
        (back, there)
    };
    let publisher = out
        .publisher_builder()
        .initial_max_slice_len(arguments.bytes)
        .create()?;
    Ok((publisher, into.subscriber_builder().create()?))
}

fn send(out: &Out, bytes: &[u8]) -> Result<(), Box<dyn Error>> {
    let sample = out.loan_slice_uninit(bytes.len())?;
    sample.write_from_slice(bytes).send()?;
    Ok(())
}

/// Copies the next message, if there is one.
fn receive(into: &In, bytes: &mut [u8]) -> Result<bool, Box<dyn Error>> {
    let Some(sample) = into.receive()? else {
        return Ok(false);
    };
    bytes.copy_from_slice(sample.payload());
    Ok(true)
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let mut bytes = vec![1; arguments.bytes];
    let (out, into) = open(&arguments)?;
    if arguments.is_client {
        let _alive = arguments.connect()?;
        return measure(arguments.times, || {
            send(&out, &bytes)?;
            while !receive(&into, &mut bytes)? {
                spin_loop();
            }
            Ok(())
        });
    }
    let mut client = arguments.accept()?;
    client.set_nonblocking(true)?;
    for turn in 0u64.. {
        if receive(&into, &mut bytes)? {
            send(&out, &bytes)?;
        } else if turn % 4096 == 0 && matches!(client.read(&mut [0]), Ok(0)) {
            break;
        } else {
            spin_loop();
        }
    }
    Ok(())
}
