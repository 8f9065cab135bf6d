//! Sends an adapter's file down a stream, in pieces from the disk: to a stage of this head, and to other workers. Whoever gets it
//! checks the hash.

use std::io;

use quinn::SendStream;
use shoal_common::wire::blob::{BLOB_PRIORITY, BlobHeader};
use shoal_common::wire::codec;
use tokio::fs::File;
use tokio::io::AsyncReadExt;

/// Bytes read from the disk at once.
const PIECE: usize = 64 << 10;

/// Sends `found`, a file and its length, or says that nobody here has it; behind whatever else the connection carries. Resolves
/// when the other end has all of it.
pub(crate) async fn send(mut stream: SendStream, found: Option<(u64, std::fs::File)>) -> io::Result<()> {
    // Fails only where the stream is gone, and then writing fails, too.
    let _ = stream.set_priority(BLOB_PRIORITY);
    let header = found.as_ref().map_or(BlobHeader::NotFound, |(len, _)| BlobHeader::Found { len: *len });
    codec::write_frame(&mut stream, &header).await.map_err(io::Error::other)?;
    if let Some((len, file)) = found {
        let mut file = File::from_std(file).take(len);
        let mut piece = vec![0; PIECE];
        loop {
            let read = file.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            stream.write_all(&piece[..read]).await?;
        }
    }
    let _ = stream.finish();
    // A stream that is dropped before is reset.
    match stream.stopped().await {
        Ok(None) => Ok(()),
        Ok(Some(_)) | Err(_) => Err(io::ErrorKind::ConnectionReset.into()),
    }
}
