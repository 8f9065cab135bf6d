//! Who may give orders to the cluster. There are no API keys yet, so it is whoever sits at the router's own machine; where
//! keys come, they are asked for here and nowhere else. A handler that takes an [`Operator`] cannot be reached without one.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::{FORWARDED, VIA};
use axum::http::request::Parts;

use super::error::ApiError;
use super::foreign::HostPolicy;
use super::server::Peer;
use crate::app::App;

/// What a proxy adds. Behind one, everybody seems to come from this machine.
const BY_PROXY: [&str; 3] = ["x-forwarded-for", "x-forwarded-host", "x-real-ip"];

/// Proof that a request may give orders.
#[derive(Clone, Copy, Debug)]
pub struct Operator(());

impl FromRequestParts<Arc<App>> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _app: &Arc<App>) -> Result<Self, ApiError> {
        let local = parts.extensions.get::<Peer>().is_some_and(|peer| peer.0.ip().to_canonical().is_loopback());
        let proxied = parts.headers.contains_key(FORWARDED)
            || parts.headers.contains_key(VIA)
            || BY_PROXY.iter().any(|name| parts.headers.contains_key(*name));
        if !local || proxied {
            return Err(ApiError::OperatorsOnly);
        }
        // Whatever the server is bound to: a page in a browser on this machine comes from this machine too.
        HostPolicy::LocalNames.check(&parts.headers, &parts.uri)?;
        Ok(Self(()))
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use axum::http::Request;

    use super::*;
    use crate::http::error::ForeignFault;
    use crate::http::tests::bare_app;

    async fn asked(from: Option<&str>, headers: &[(&str, &str)]) -> Result<(), ApiError> {
        let mut request = Request::post("/v1/cluster/workers/a/drain");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        if let Some(from) = from {
            parts.extensions.insert(Peer(from.parse::<SocketAddr>().unwrap()));
        }
        Operator::from_request_parts(&mut parts, &Arc::new(bare_app())).await.map(drop)
    }

    #[tokio::test]
    async fn orders_are_taken_from_this_machine_alone() {
        for here in ["127.0.0.1:5", "[::1]:5", "[::ffff:127.0.0.1]:5"] {
            asked(Some(here), &[("host", "localhost:8080")]).await.expect(here);
        }
        for elsewhere in [Some("192.0.2.1:5"), Some("[2001:db8::1]:5"), None] {
            assert!(matches!(asked(elsewhere, &[]).await, Err(ApiError::OperatorsOnly)), "{elsewhere:?}");
        }
    }

    #[tokio::test]
    async fn neither_a_proxy_nor_a_page_on_this_machine_is_an_operator() {
        for name in ["forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"] {
            let proxied = asked(Some("127.0.0.1:5"), &[(name, "192.0.2.1")]).await;
            assert!(matches!(proxied, Err(ApiError::OperatorsOnly)), "{name}");
        }
        let page = asked(Some("127.0.0.1:5"), &[("origin", "https://evil.example")]).await;
        assert!(matches!(page, Err(ApiError::Foreign(ForeignFault::Origin))), "{page:?}");
        let rebound = asked(Some("127.0.0.1:5"), &[("host", "evil.example")]).await;
        assert!(matches!(rebound, Err(ApiError::Foreign(ForeignFault::Host))), "{rebound:?}");
    }
}
