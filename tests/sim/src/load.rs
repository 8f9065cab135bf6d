//! The clients: a host on which every request of the scenario is sent over HTTP at its time, and what becomes of it is
//! written down. Started by `play`; judges nothing.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::{Request as HttpRequest, Response};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use turmoil::net::TcpStream;

use crate::heard::{BadForm, Events, Heard};
use crate::requests::{Delivery, Reader, Request};

/// After so long without a byte a client takes a stream for broken: comments keep one alive that has nothing to tell.
/// (Where a receiver's buffer is full, turmoil forgets the end of a connection.)
const SILENCE: Duration = Duration::from_secs(15);

/// Longer than any run.
const FOREVER: Duration = Duration::from_secs(1 << 20);

/// What became of a request.
#[derive(Clone, Debug, PartialEq)]
pub enum End {
    /// It was answered with 200, and the body came to its end.
    Answered(Heard),
    /// It was answered with another status and this code.
    Refused { status: u16, code: String },
    /// The connection broke before the end; what had come is here.
    Broken(Heard),
    /// The client hung up.
    Left,
    /// What came is not what the contract allows.
    BadForm(BadForm),
}

/// A request that is over.
#[derive(Clone, Debug)]
pub struct Told {
    /// Which.
    pub id: usize,
    /// When it was sent and when it was over, since the load began.
    pub life: (Duration, Duration),
    /// How.
    pub end: End,
}

/// The requests that are over, as the clients write them down.
pub type Book = Rc<RefCell<Vec<Told>>>;

/// Sends `requests` to `routers`, each at its time from now on, and waits for all.
pub async fn run(requests: Vec<Request>, routers: Vec<SocketAddr>, book: Book) {
    let began = Instant::now();
    let clients: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let (router, book) = (routers[request.router], Rc::clone(&book));
            tokio::task::spawn_local(async move {
                tokio::time::sleep_until(began + request.at).await;
                tracing::info!(request = request.id, reader = ?request.reader, body = %request.body(), "asks");
                let end = client(&request, router).await;
                let life = (request.at, began.elapsed());
                note(&request, &end);
                book.borrow_mut().push(Told { id: request.id, life, end });
            })
        })
        .collect();
    for client in clients {
        client.await.expect("a client does not panic");
    }
}

fn note(request: &Request, end: &End) {
    let request = request.id;
    match end {
        End::Answered(heard) => {
            let text = blake3::hash(format!("{:?}", heard.choices).as_bytes()).to_hex();
            tracing::info!(request, answer = &text[..8], error = heard.error, over = heard.is_over, "answered");
        }
        End::Broken(heard) => tracing::info!(request, choices = heard.choices.len(), "broken"),
        other => tracing::info!(request, end = ?other, "over"),
    }
}

async fn client(request: &Request, router: SocketAddr) -> End {
    match request.reader {
        Reader::Leaves(after) => tokio::time::timeout(after, exchange(request, router)).await.unwrap_or(End::Left),
        Reader::Steady | Reader::Slow(_) | Reader::Stalls(_) => exchange(request, router).await,
    }
}

async fn exchange(request: &Request, router: SocketAddr) -> End {
    let body = request.body().to_string();
    let Some((response, _connection)) = send(router, body).await else { return End::Broken(Heard::default()) };
    let status = response.status().as_u16();
    if status != 200 {
        return refused(status, response).await;
    }
    let seed = response.headers().get("x-shoal-seed").and_then(|seed| seed.to_str().ok()?.parse().ok());
    match request.delivery {
        Delivery::Whole => match read(request, response, |_| Ok(())).await {
            Ok((body, Ending::Whole)) => match Heard::document(&body) {
                Ok(heard) => End::Answered(Heard { seed, ..heard }),
                Err(bad) => End::BadForm(bad),
            },
            Ok((_, Ending::Cut)) => End::Broken(Heard::default()),
            Err(bad) => End::BadForm(bad),
        },
        Delivery::Stream => {
            let (mut heard, mut events) = (Heard { seed, ..Heard::default() }, Events::default());
            let read =
                read(request, response, |bytes| events.push(bytes)?.iter().try_for_each(|event| heard.event(event)));
            match read.await {
                Ok((_, Ending::Whole)) if !events.is_cut() => End::Answered(heard),
                Ok(_) => End::Broken(heard),
                Err(bad) => End::BadForm(bad),
            }
        }
    }
}

/// The answer's head, and the connection that its body comes over.
async fn send(router: SocketAddr, body: String) -> Option<(Response<Incoming>, AbortOnDropHandle<()>)> {
    let stream = TcpStream::connect(router).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(async move {
        // Whoever waits for the body hears of it too.
        let _ = connection.await;
    });
    let connection = AbortOnDropHandle::new(connection);
    let request = HttpRequest::post("/v1/completions")
        .header("host", "router")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .expect("every part of it is valid");
    Some((sender.send_request(request).await.ok()?, connection))
}

async fn refused(status: u16, response: Response<Incoming>) -> End {
    match response.into_body().collect().await {
        Ok(body) => {
            let body: serde_json::Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
            let code = body["error"]["code"].as_str().unwrap_or_default().to_owned();
            End::Refused { status, code }
        }
        Err(_) => End::Broken(Heard::default()),
    }
}

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// As HTTP says it.
    Whole,
    /// The connection broke.
    Cut,
}

/// Reads a body to its end as the request's client does, and hands on each piece.
async fn read(
    request: &Request,
    response: Response<Incoming>,
    mut take: impl FnMut(&[u8]) -> Result<(), BadForm>,
) -> Result<(Vec<u8>, Ending), BadForm> {
    let mut body = response.into_body();
    let (mut all, mut is_first) = (Vec::new(), true);
    loop {
        let within = if request.delivery == Delivery::Stream { SILENCE } else { FOREVER };
        let frame = match tokio::time::timeout(within, body.frame()).await {
            Ok(Some(Ok(frame))) => frame,
            Ok(None) => return Ok((all, Ending::Whole)),
            Ok(Some(Err(_))) | Err(_) => return Ok((all, Ending::Cut)),
        };
        let Ok(bytes) = frame.into_data() else { continue };
        take(&bytes)?;
        all.extend_from_slice(&bytes);
        match request.reader {
            Reader::Slow(pause) => tokio::time::sleep(pause).await,
            Reader::Stalls(pause) if is_first => tokio::time::sleep(pause).await,
            Reader::Steady | Reader::Stalls(_) | Reader::Leaves(_) => {}
        }
        is_first = false;
    }
}
