//! Cuts a byte stream into server-sent events, wherever the network cut it before. Called by `answer` with what was read;
//! knows nothing of what the events say.

/// Bytes of one event at most. A completion chunk has some hundreds; more is no event stream.
const MAX_EVENT: usize = 4 << 20;

/// An event is longer than [`MAX_EVENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream is longer than {MAX_EVENT} bytes")]
pub(crate) struct TooLong;

/// The state between two reads: the part of a line, and the data of the event that it belongs to. Both are bounded by
/// [`MAX_EVENT`].
#[derive(Debug, Default)]
pub(super) struct EventReader {
    line: Vec<u8>,
    data: Vec<u8>,
    /// An event may have an empty `data`, which is not the same as none.
    lines_of_data: usize,
}

impl EventReader {
    /// Gives the data of every event that `bytes` completes to `take`, in order. Lines end with LF or CR LF.
    ///
    /// # Errors
    /// What `take` says, at once; [`TooLong`].
    pub(super) fn feed<E: From<TooLong>>(
        &mut self,
        mut bytes: &[u8],
        mut take: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = (&bytes[..end], &bytes[end + 1..]);
            bytes = rest;
            if self.line.is_empty() {
                self.take_line(line, &mut take)?;
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.extend_from_slice(line);
                self.take_line(&whole, &mut take)?;
            }
        }
        if self.line.len() + bytes.len() > MAX_EVENT {
            return Err(TooLong.into());
        }
        self.line.extend_from_slice(bytes);
        Ok(())
    }

    fn take_line<E: From<TooLong>>(
        &mut self,
        line: &[u8],
        take: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            return self.finish_event(take);
        }
        // Comments and the other fields say nothing that is measured.
        let Some(value) = line.strip_prefix(b"data:") else { return Ok(()) };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        if self.data.len() + value.len() > MAX_EVENT {
            return Err(TooLong.into());
        }
        if self.lines_of_data > 0 {
            self.data.push(b'\n');
        }
        self.data.extend_from_slice(value);
        self.lines_of_data += 1;
        Ok(())
    }

    fn finish_event<E>(&mut self, take: &mut impl FnMut(&[u8]) -> Result<(), E>) -> Result<(), E> {
        if std::mem::take(&mut self.lines_of_data) == 0 {
            return Ok(());
        }
        let taken = take(&self.data);
        self.data.clear();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &[u8] =
        b": a comment\n\ndata: {\"a\":1}\n\r\nevent: x\r\ndata:two\r\ndata: lines\r\n\r\nid: 1\n\ndata:\n\ndata: [DONE]\n\n";
    const EVENTS: [&str; 4] = ["{\"a\":1}", "two\nlines", "", "[DONE]"];

    fn read(parts: &[&[u8]]) -> Vec<String> {
        let (mut reader, mut events) = (EventReader::default(), Vec::new());
        for part in parts {
            let fed: Result<(), TooLong> = reader.feed(part, |data| {
                events.push(String::from_utf8(data.to_vec()).expect("the stream is text"));
                Ok(())
            });
            fed.expect("no event is long");
        }
        events
    }

    #[test]
    fn an_event_is_the_same_wherever_the_network_cut_the_stream() {
        assert_eq!(read(&[STREAM]), EVENTS);
        for first in 0..STREAM.len() {
            for second in first..STREAM.len() {
                let parts = [&STREAM[..first], &STREAM[first..second], &STREAM[second..]];
                assert_eq!(read(&parts), EVENTS, "cut at {first} and {second}");
            }
        }
    }

    #[test]
    fn an_event_that_is_not_finished_is_not_told() {
        assert!(read(&[b"data: half", b" of it\n"]).is_empty());
    }

    #[test]
    fn what_the_taker_refuses_ends_the_reading() {
        #[derive(Debug, PartialEq)]
        struct Refused(usize);
        impl From<TooLong> for Refused {
            fn from(_: TooLong) -> Self {
                Self(usize::MAX)
            }
        }
        let mut taken = 0;
        let fed = EventReader::default().feed(STREAM, |_| {
            taken += 1;
            if taken == 2 { Err(Refused(taken)) } else { Ok(()) }
        });
        assert_eq!((fed, taken), (Err(Refused(2)), 2));
    }

    #[test]
    fn an_endless_line_is_refused() {
        let mut reader = EventReader::default();
        let mut fed: Result<(), TooLong> = Ok(());
        for _ in 0..=MAX_EVENT >> 20 {
            fed = fed.and_then(|()| reader.feed(&[b'x'; 1 << 20], |_| Ok(())));
        }
        assert_eq!(fed, Err(TooLong));
    }
}
