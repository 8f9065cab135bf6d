pub async fn serve(_l: tokio::net::TcpListener, _r: axum::Router, _li: &shoal_common::config::Limits, _s: shoal_common::shutdown::Shutdown) -> std::io::Result<()> { std::future::pending().await }
