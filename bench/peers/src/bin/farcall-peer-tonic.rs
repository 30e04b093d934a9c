//! A round trip of gRPC: a unary call of tonic whose message is the bytes themselves, without protocol buffers.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::error::Error;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BufMut, Bytes};
use farcall_bench_peers::{Arguments, measure};
use http::uri::PathAndQuery;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::Service;
use tonic::server::{NamedService, UnaryService};
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

/// Bytes as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        let len = from.remaining();
        Ok(Some(from.copy_to_bytes(len)))
    }
}

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

/// Answers with what came.
#[derive(Clone, Copy, Debug)]
struct Echo;

impl NamedService for Echo {
    const NAME: &'static str = "peer.Echo";
}

impl UnaryService<Bytes> for Echo {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(request.into_inner())))
    }
}

impl Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async { Ok(tonic::server::Grpc::new(Plain).unary(Echo, request).await) })
    }
}

async fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    // Ended by who started it, as the other peers' servers are.
    let address = ([127, 0, 0, 1], port).into();
    Ok(Server::builder()
        .tcp_nodelay(true)
        .add_service(Echo)
        .serve(address)
        .await?)
}

async fn connect(port: u16) -> Result<tonic::client::Grpc<Channel>, Box<dyn Error>> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))?.tcp_nodelay(true);
    Ok(tonic::client::Grpc::new(endpoint.connect().await?))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if !arguments.is_client {
        return runtime.block_on(serve(arguments.port));
    }
    let mut client = runtime.block_on(connect(arguments.port))?;
    let bytes = Bytes::from(vec![1; arguments.bytes]);
    measure(arguments.times, || {
        runtime.block_on(async {
            client.ready().await?;
            let path = PathAndQuery::from_static("/peer.Echo/Echo");
            let answer = client
                .unary(Request::new(bytes.clone()), path, Plain)
                .await?;
            assert_eq!(answer.into_inner().len(), bytes.len());
            Ok::<_, Box<dyn Error>>(())
        })
    })
}
