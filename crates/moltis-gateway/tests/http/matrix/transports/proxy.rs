//! A proxy before a gateway: it says of each request who asked it and how, as nginx is told to.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

use super::{shake_hands, still_open};

/// Carries requests to `gateway` until `stop`. `scheme` is the one that it says it was asked by: TLS
/// in front of it would end here, and is none of the gateway's business.
pub(super) async fn serve(
    listener: TcpListener,
    gateway: SocketAddr,
    scheme: &'static str,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, client) = accepted.unwrap();
        let carried = carry(stream, client, gateway, scheme);
        tokio::spawn(stop.clone().run_until_cancelled_owned(carried));
    }
}

async fn carry(stream: TcpStream, client: SocketAddr, gateway: SocketAddr, scheme: &'static str) {
    let kept: Arc<Mutex<Option<SendRequest<Incoming>>>> = Arc::default();
    let service = service_fn(move |mut request: Request<Incoming>| {
        say(request.headers_mut(), client, scheme);
        let kept = Arc::clone(&kept);
        async move { pass(request, gateway, &mut *kept.lock().await).await }
    });
    let stream = TokioIo::new(stream);
    let served = http1::Builder::new().serve_connection(stream, service);
    served.await.ok(); // the client has gone
}

async fn pass(
    request: Request<Incoming>,
    gateway: SocketAddr,
    kept: &mut Option<SendRequest<Incoming>>,
) -> hyper::Result<Response<Incoming>> {
    let mut sender = match still_open(kept.take()).await {
        Some(sender) => sender,
        None => shake_hands(TcpStream::connect(gateway).await.unwrap()).await,
    };
    let answer = sender.send_request(request).await?;
    *kept = Some(sender);
    Ok(answer)
}

/// Adds the client behind whoever it names, and puts its own words in place of the client's.
fn say(headers: &mut HeaderMap, client: SocketAddr, scheme: &'static str) {
    let client: HeaderValue = client.ip().to_string().parse().unwrap();
    headers.append("x-forwarded-for", client);
    headers.insert("x-forwarded-proto", HeaderValue::from_static(scheme));
    let host = headers[HOST].clone();
    headers.insert("x-forwarded-host", host);
}
