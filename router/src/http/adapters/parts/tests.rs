//! Uploads in every order, cut at every place, and those that would cost too much.

use std::io::Read;

use axum::http::StatusCode;
use futures_util::stream;
use tokio::sync::Semaphore;

use super::*;

const RULES: Rules = Rules { limit: 2 << 20, patience: Duration::from_secs(10) };

fn spool() -> Spool {
    let place = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    Spool::new(tempfile::NamedTempFile::new().unwrap(), place)
}

/// A form of parts with these names and contents.
fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut form = Vec::new();
    for (name, content) in parts {
        form.extend(format!("--X\r\nContent-Disposition: form-data; {name}\r\n\r\n").into_bytes());
        form.extend(*content);
        form.extend(b"\r\n");
    }
    form.extend(b"--X--\r\n");
    form
}

const CONFIG: &str = "name=\"adapter_config.json\"";
const WEIGHTS: &str = "name=\"file\"; filename=\"adapter_model.safetensors\"";

/// A body in pieces, as a socket gives them.
fn body(bytes: &[u8], piece: usize) -> Body {
    let pieces: Vec<Result<Bytes, std::io::Error>> =
        bytes.chunks(piece).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
    Body::from_stream(stream::iter(pieces))
}

async fn received(mut body: Body, rules: Rules) -> Result<(Vec<u8>, Vec<u8>), ApiError> {
    let Parts { config, weights } = Parts::receive(&mut body, "X".to_owned(), rules, spool()).await?;
    let mut bytes = Vec::new();
    weights.open().unwrap().read_to_end(&mut bytes).unwrap();
    Ok((config, bytes))
}

fn code(outcome: Result<(Vec<u8>, Vec<u8>), ApiError>) -> (StatusCode, Option<String>) {
    let error = outcome.unwrap_err();
    (error.status(), error.body().param)
}

#[tokio::test]
async fn both_files_arrive_whole_in_any_order_and_any_pieces() {
    let weights: Vec<u8> = (0..300_000u32).flat_map(|n| (n % 251).to_le_bytes()).collect();
    let parts = [(CONFIG, &b"{\"r\": 8}\r\n--"[..]), (WEIGHTS, &weights[..])];
    for order in [[0, 1], [1, 0]] {
        let form = form(&order.map(|at| parts[at]));
        for piece in [977, 16 << 10, form.len()] {
            let (config, got) = received(body(&form, piece), RULES).await.unwrap();
            assert_eq!(config, b"{\"r\": 8}\r\n--");
            assert!(got == weights, "the weights differ in pieces of {piece}");
        }
    }
}

#[tokio::test]
async fn what_is_missing_twice_or_unknown_is_named() {
    let unprocessable = |param: Option<&str>| (StatusCode::UNPROCESSABLE_ENTITY, param.map(str::to_owned));
    let asked = [
        (form(&[]), Some("adapter_config.json")),
        (form(&[(WEIGHTS, b"w")]), Some("adapter_config.json")),
        (form(&[(CONFIG, b"{}")]), Some("adapter_model.safetensors")),
        (form(&[(CONFIG, b"{}"), (CONFIG, b"{}")]), Some("adapter_config.json")),
        (form(&[(WEIGHTS, b"w"), (WEIGHTS, b"w")]), Some("adapter_model.safetensors")),
        (form(&[(CONFIG, b"{}"), ("name=\"adapter_model.bin\"", b"w")]), None),
        (form(&[("name=\"\"; filename=\"../../adapter_config.json\"", b"{}")]), None),
    ];
    for (form, param) in asked {
        assert_eq!(code(received(body(&form, 64), RULES).await), unprocessable(param));
    }
}

#[tokio::test]
async fn a_body_that_is_no_form_or_ends_too_soon_is_malformed() {
    let whole = form(&[(CONFIG, b"{}"), (WEIGHTS, b"weights")]);
    for end in 0..whole.len() - b"--\r\n".len() {
        assert_eq!(code(received(body(&whole[..end], 7), RULES).await).0, StatusCode::BAD_REQUEST, "{end} bytes");
    }
    for strange in [&b"{}"[..], b"--Y\r\n\r\n--Y--", b"--X\r\n\xff\xff: x\r\n\r\n--X--\r\n", b"--X junk"] {
        assert_eq!(code(received(body(strange, 64), RULES).await).0, StatusCode::BAD_REQUEST, "{strange:?}");
    }
}

/// A form that ends where the content of its part begins.
fn opened(part: &str) -> Vec<u8> {
    form(&[(part, b"")]).strip_suffix(b"\r\n--X--\r\n").unwrap().to_vec()
}

/// A body that would go on for ever, and how often it was asked for more.
fn endless(head: Vec<u8>) -> (Body, Arc<AtomicU64>) {
    let asked = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&asked);
    let rest = stream::repeat_with(move || {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 16 << 10]))
    });
    let all = stream::once(async { Ok(Bytes::from(head)) });
    (Body::from_stream(futures_util::StreamExt::chain(all, rest)), asked)
}

#[tokio::test]
async fn too_much_is_refused_while_it_is_read() {
    let (weights, asked) = endless(opened(WEIGHTS));
    assert_eq!(code(received(weights, RULES).await).0, StatusCode::PAYLOAD_TOO_LARGE);
    assert!(asked.load(Ordering::Relaxed) <= RULES.limit / (16 << 10) + 5, "{asked:?} pieces were read");
    let (config, asked) = endless(opened(CONFIG));
    assert_eq!(code(received(config, RULES).await), (StatusCode::UNPROCESSABLE_ENTITY, Some(FILES[0].to_owned())));
    assert!(asked.load(Ordering::Relaxed) <= 70, "{asked:?} pieces were read");
    let exactly = form(&[(CONFIG, b"{}"), (WEIGHTS, &vec![0; (2 << 20) - 2])]);
    assert!(received(body(&exactly, 16 << 10), RULES).await.is_ok());
    let over = form(&[(CONFIG, b"{}"), (WEIGHTS, &vec![0; (2 << 20) - 1])]);
    assert_eq!(code(received(body(&over, 16 << 10), RULES).await).0, StatusCode::PAYLOAD_TOO_LARGE);
}

#[tokio::test]
async fn what_is_no_part_is_not_gathered_in_memory() {
    let roomy = Rules { limit: 1 << 40, ..RULES };
    for head in [&b""[..], b"--X\r\nContent-Disposition: form-data; name=\"", b"--X"] {
        let (body, asked) = endless(head.to_vec());
        assert_eq!(code(received(body, roomy).await).0, StatusCode::BAD_REQUEST, "{head:?}");
        assert!(asked.load(Ordering::Relaxed) <= 75, "{asked:?} pieces were taken after {head:?}");
    }
}

#[tokio::test]
async fn a_body_slower_than_the_least_rate_is_cut_off() {
    let hasty = Rules { patience: Duration::from_millis(50), ..RULES };
    let trickle = stream::unfold(opened(WEIGHTS), |bytes| async move {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from(bytes)), vec![b'x']))
    });
    assert_eq!(code(received(Body::from_stream(trickle), hasty).await).0, StatusCode::REQUEST_TIMEOUT);
    let silent = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    assert_eq!(code(received(silent, hasty).await).0, StatusCode::REQUEST_TIMEOUT);
}

#[test]
fn every_byte_that_comes_gives_time_for_more() {
    assert_eq!(RULES.allowed(0), RULES.patience);
    assert_eq!(RULES.allowed(1 << 20), RULES.patience + Duration::from_secs(64));
    assert!(RULES.allowed(1 << 30) < Duration::from_secs(24 * 60 * 60));
}
