//! A plain HTTP/1.1 connection to the measured server: one request at a time, kept between them. Called by `answer`,
//! `models` and `prompts`. It shares the machine with the server, so it does no more than it must: no pool, no TLS.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;

use super::error::BenchError;

/// Bytes of an answer that is read as a whole, at most: token ids of a long prompt.
const MAX_ANSWER: usize = 16 << 20;

/// Characters of an error's text that are told.
const MAX_TOLD: usize = 500;

/// Where the measured server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// Host and port, as in `Host`.
    authority: String,
    /// Without the brackets of an IPv6 address.
    host: String,
    port: u16,
}

impl Server {
    /// Reads `http://host:port`; a path as in OpenAI's base URLs (`/v1`) is the same server.
    pub(super) fn parse(url: &str) -> Result<Self, BenchError> {
        let bad = || BenchError::BadUrl(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => return Err(BenchError::Tls(url.to_owned())),
            _ => return Err(bad()),
        }
        if !matches!(uri.path().trim_end_matches('/'), "" | "/v1") {
            return Err(bad());
        }
        let authority = uri.authority().ok_or_else(bad)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { authority: authority.to_string(), host, port: authority.port_u16().unwrap_or(80) })
    }

    /// The URL without a path.
    pub(super) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }

    async fn dial(&self) -> Result<SendRequest<Full<Bytes>>, BenchError> {
        let unreachable = |source| BenchError::Unreachable { authority: self.authority.clone(), source };
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(BenchError::Broken)?;
        // Ends when the sender and the answer's body are dropped; what breaks it is told to whoever reads the answer.
        tokio::spawn(connection);
        Ok(sender)
    }
}

/// A connection that is dialled at the first request, and again where the server closed it.
#[derive(Debug)]
pub(super) struct Connection<'a> {
    server: &'a Server,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> Connection<'a> {
    pub(super) fn new(server: &'a Server) -> Self {
        Self { server, sender: None }
    }

    pub(super) fn server(&self) -> &Server {
        self.server
    }

    /// Posts JSON and gives the answer once its head is there.
    ///
    /// # Errors
    /// [`BenchError::Refused`] with the server's own words when the status is not 200.
    pub(super) async fn post(&mut self, path: &'static str, body: Bytes) -> Result<Response<Incoming>, BenchError> {
        self.send(Method::POST, path, body).await
    }

    /// Posts JSON and reads JSON.
    pub(super) async fn post_json<T: DeserializeOwned>(
        &mut self,
        path: &'static str,
        body: &serde_json::Value,
    ) -> Result<T, BenchError> {
        let response = self.send(Method::POST, path, Bytes::from(body.to_string())).await?;
        read_json(path, response).await
    }

    /// Gets JSON.
    pub(super) async fn get_json<T: DeserializeOwned>(&mut self, path: &'static str) -> Result<T, BenchError> {
        let response = self.send(Method::GET, path, Bytes::new()).await?;
        read_json(path, response).await
    }

    async fn send(
        &mut self,
        method: Method,
        path: &'static str,
        body: Bytes,
    ) -> Result<Response<Incoming>, BenchError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, &self.server.authority)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .expect("the path is a constant and the authority was parsed");
        let response = match self.send_on_kept(&request).await {
            Some(response) => response,
            None => {
                let sender = self.sender.insert(self.server.dial().await?);
                sender.send_request(request).await.map_err(BenchError::Broken)?
            }
        };
        if response.status() == StatusCode::OK { Ok(response) } else { Err(refusal(path, response).await) }
    }

    /// `None` where there is no connection any more. A server may close one between two answers without a word, so a request
    /// that fails on a kept one says nothing of the server; on a new one it does.
    async fn send_on_kept(&mut self, request: &Request<Full<Bytes>>) -> Option<Response<Incoming>> {
        let sender = self.sender.as_mut()?;
        sender.ready().await.ok()?;
        sender.send_request(request.clone()).await.ok()
    }
}

async fn read_json<T: DeserializeOwned>(path: &'static str, response: Response<Incoming>) -> Result<T, BenchError> {
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await.map_err(BenchError::NotReadable)?;
    serde_json::from_slice(&body.to_bytes()).map_err(|source| BenchError::NotJson { path, source })
}

async fn refusal(path: &'static str, response: Response<Incoming>) -> BenchError {
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    BenchError::Refused { path, status, message: message_in(&body) }
}

/// The shapes in which servers tell an error; each member may be missing.
#[derive(Deserialize)]
struct ErrorShape {
    error: Option<serde_json::Value>,
    message: Option<String>,
}

/// What an error's body says, in whichever shape; the body itself where it is none.
pub(super) fn message_in(body: &[u8]) -> String {
    let shape = serde_json::from_slice::<ErrorShape>(body).ok();
    let told = shape.and_then(|shape| match shape.error {
        Some(serde_json::Value::String(text)) => Some(text),
        Some(error) => error.get("message").and_then(|message| message.as_str()).map(str::to_owned),
        None => shape.message,
    });
    let text = told.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    text.trim().chars().take(MAX_TOLD).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_named_with_or_without_port_and_base_path() {
        for (url, host, port) in [
            ("http://127.0.0.1:8080", "127.0.0.1", 8080),
            ("http://localhost/v1/", "localhost", 80),
            ("http://[::1]:9", "::1", 9),
        ] {
            let server = Server::parse(url).expect(url);
            assert_eq!((server.host.as_str(), server.port), (host, port));
        }
    }

    #[test]
    fn what_names_no_server_is_told_apart_from_what_the_client_cannot_speak() {
        for url in ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x/v1/completions"] {
            assert!(matches!(Server::parse(url), Err(BenchError::BadUrl(_))), "{url}");
        }
        assert!(matches!(Server::parse("https://x"), Err(BenchError::Tls(_))));
    }

    #[test]
    fn the_servers_words_are_found_in_every_shape_of_error() {
        for body in [
            r#"{"error": {"message": "no such model", "code": 404}}"#,
            r#"{"error": "no such model"}"#,
            r#"{"message": "no such model", "object": "error"}"#,
            " no such model\n",
        ] {
            assert_eq!(message_in(body.as_bytes()), "no such model", "{body}");
        }
        assert_eq!(message_in(b"{}"), "{}");
    }
}
