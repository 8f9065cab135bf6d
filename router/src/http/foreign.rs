//! Refuses what a web page elsewhere sends to a server on loopback. A page may rebind its own host name to 127.0.0.1 and
//! then read answers as its own origin, and any page may post without reading: on loopback the `Host` must therefore be
//! localhost or an IP address, and an `Origin`, where there is one, localhost or a loopback address.

use std::net::{IpAddr, SocketAddr};

use axum::extract::{Request, State};
use axum::http::header::{HOST, ORIGIN};
use axum::http::{HeaderMap, Uri};
use axum::middleware::Next;
use axum::response::Response;

use super::error::{ApiError, ForeignFault};

/// Which host names the server answers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPolicy {
    /// Bound to loopback: this machine's own names only.
    LocalNames,
    /// Bound to an address that others reach, under whatever name.
    AnyName,
}

impl HostPolicy {
    /// The policy for a server bound to `address`.
    pub fn for_address(address: SocketAddr) -> Self {
        if address.ip().is_loopback() { Self::LocalNames } else { Self::AnyName }
    }

    pub(super) fn check(self, headers: &HeaderMap, uri: &Uri) -> Result<(), ForeignFault> {
        if self == Self::AnyName {
            return Ok(());
        }
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let host = uri.authority().map(|authority| authority.as_str()).or_else(|| text(HOST));
        // HTTP/1.0 clients may send none; a browser always does.
        if host.is_some_and(|host| !is_own_host(host)) {
            return Err(ForeignFault::Host);
        }
        if text(ORIGIN).is_some_and(|origin| !is_own_origin(origin)) {
            return Err(ForeignFault::Origin);
        }
        Ok(())
    }
}

/// Middleware around every route.
pub(crate) async fn refuse(
    State(hosts): State<HostPolicy>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    hosts.check(request.headers(), request.uri())?;
    Ok(next.run(request).await)
}

fn is_own_host(authority: &str) -> bool {
    let host = host_of(authority);
    is_localhost(host) || host.parse::<IpAddr>().is_ok()
}

fn is_own_origin(origin: &str) -> bool {
    let Some((_, authority)) = origin.split_once("://") else { return false };
    let host = host_of(authority);
    is_localhost(host) || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn is_localhost(host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    host == "localhost" || host.ends_with(".localhost")
}

/// The host of `host:port`, without the brackets of an IPv6 address.
fn host_of(authority: &str) -> &str {
    if let Some(rest) = authority.strip_prefix('[') {
        return rest.split_once(']').map_or("", |(host, _)| host);
    }
    authority.rsplit_once(':').map_or(authority, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebound_name_is_not_this_machine() {
        for own in [
            "localhost",
            "LOCALHOST:8080",
            "localhost.:80",
            "x.localhost:1",
            "127.0.0.1:8080",
            "[::1]:8080",
            "10.0.0.7",
        ] {
            assert!(is_own_host(own), "{own} was refused");
        }
        for foreign in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "",
            "[::1",
            "notlocalhost",
        ] {
            assert!(!is_own_host(foreign), "{foreign:?} was taken");
        }
    }

    #[test]
    fn a_page_from_elsewhere_is_no_origin_of_ours() {
        for own in ["http://localhost:8080", "http://127.0.0.1", "https://[::1]:9"] {
            assert!(is_own_origin(own), "{own} was refused");
        }
        for foreign in
            ["https://evil.example", "null", "http://203.0.113.5:8080", "http://localhost.evil.example", "file://"]
        {
            assert!(!is_own_origin(foreign), "{foreign:?} was taken");
        }
    }
}
