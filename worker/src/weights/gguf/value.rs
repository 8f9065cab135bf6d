//! Metadata values of a GGUF file and the bounded reader under them. Strings and arrays stay where they are in the file.

use super::header::HeaderFault;

/// Reads a file's bytes from front to back, never past their end.
#[derive(Debug, Clone)]
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(super) fn position(&self) -> usize {
        self.at
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next `count` bytes, which belong to `what`.
    pub(super) fn take(&mut self, count: u64, what: &'static str) -> Result<&'a [u8], HeaderFault> {
        let truncated = HeaderFault::Truncated { what, at: self.bytes.len() };
        match usize::try_from(count) {
            Ok(count) if count <= self.remaining() => {
                let taken = &self.bytes[self.at..self.at + count];
                self.at += count;
                Ok(taken)
            }
            _ => Err(truncated),
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], HeaderFault> {
        Ok(self.take(N as u64, what)?.try_into().expect("take gives as many bytes as it is asked for"))
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Result<u32, HeaderFault> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Result<u64, HeaderFault> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn string(&mut self) -> Result<&'a [u8], HeaderFault> {
        let len = self.u64("a string's length")?;
        self.take(len, "a string")
    }
}

/// A metadata value. Texts are bytes until someone needs them to be UTF-8.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value<'a> {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Boolean(bool),
    Text(&'a [u8]),
    Array(Array<'a>),
}

/// An array of values of one type, whole inside the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Array<'a> {
    element: ValueType,
    len: usize,
    bytes: &'a [u8],
}

/// Type of a value or of an array's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Boolean,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn read(reader: &mut Reader<'_>) -> Result<Self, HeaderFault> {
        Ok(match reader.u32("a value's type")? {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Boolean,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            other => return Err(HeaderFault::ValueType(other)),
        })
    }

    /// Bytes of a value, where all values of the type take the same.
    fn fixed_size(self) -> Option<u64> {
        match self {
            Self::U8 | Self::I8 | Self::Boolean => Some(1),
            Self::U16 | Self::I16 => Some(2),
            Self::U32 | Self::I32 | Self::F32 => Some(4),
            Self::U64 | Self::I64 | Self::F64 => Some(8),
            Self::Text | Self::Array => None,
        }
    }
}

impl<'a> Value<'a> {
    /// Reads a type and a value of it.
    pub(super) fn read(reader: &mut Reader<'a>) -> Result<Self, HeaderFault> {
        match ValueType::read(reader)? {
            ValueType::Array => Array::read(reader).map(Self::Array),
            scalar => Self::read_scalar(reader, scalar),
        }
    }

    fn read_scalar(reader: &mut Reader<'a>, kind: ValueType) -> Result<Self, HeaderFault> {
        const WHAT: &str = "a value";
        Ok(match kind {
            ValueType::U8 => Self::Unsigned(u8::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::I8 => Self::Signed(i8::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::U16 => Self::Unsigned(u16::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::I16 => Self::Signed(i16::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::U32 => Self::Unsigned(reader.u32(WHAT)?.into()),
            ValueType::I32 => Self::Signed(i32::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::F32 => Self::Float(f32::from_le_bytes(reader.array(WHAT)?).into()),
            ValueType::U64 => Self::Unsigned(reader.u64(WHAT)?),
            ValueType::I64 => Self::Signed(i64::from_le_bytes(reader.array(WHAT)?)),
            ValueType::F64 => Self::Float(f64::from_le_bytes(reader.array(WHAT)?)),
            ValueType::Text => Self::Text(reader.string()?),
            ValueType::Boolean => match reader.take(1, WHAT)?[0] {
                0 => Self::Boolean(false),
                1 => Self::Boolean(true),
                other => return Err(HeaderFault::Boolean(other)),
            },
            ValueType::Array => return Err(HeaderFault::NestedArray),
        })
    }

    /// The value as a count or an index; whole numbers of any width that are not negative.
    pub(super) fn unsigned(&self) -> Option<u64> {
        match *self {
            Self::Unsigned(value) => Some(value),
            Self::Signed(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    /// The value as a number.
    pub(super) fn float(&self) -> Option<f64> {
        match *self {
            Self::Float(value) => Some(value),
            _ => None,
        }
    }

    /// The value as a yes or no.
    pub(super) fn boolean(&self) -> Option<bool> {
        match *self {
            Self::Boolean(value) => Some(value),
            _ => None,
        }
    }

    /// The value as text.
    pub(super) fn text(&self) -> Option<&'a str> {
        match *self {
            Self::Text(bytes) => str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The value as an array.
    pub(super) fn array(&self) -> Option<&Array<'a>> {
        match self {
            Self::Array(array) => Some(array),
            _ => None,
        }
    }
}

impl<'a> Array<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, HeaderFault> {
        let element = ValueType::read(reader)?;
        let count = reader.u64("an array's length")?;
        let too_many = || HeaderFault::TooMany { what: "array elements", count };
        // An empty string still has its length in the file.
        let smallest = element.fixed_size().unwrap_or(size_of::<u64>() as u64);
        if element == ValueType::Array {
            return Err(HeaderFault::NestedArray);
        }
        if count > reader.remaining() as u64 / smallest {
            return Err(too_many());
        }
        let (rest, begin) = (&reader.bytes[reader.at..], reader.at);
        match element.fixed_size() {
            Some(size) => {
                reader.take(count * size, "an array")?;
            }
            None => (0..count).try_for_each(|_| reader.string().map(|_| ()))?,
        }
        let bytes = &rest[..reader.at - begin];
        Ok(Self { element, len: usize::try_from(count).map_err(|_| too_many())?, bytes })
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The elements. Booleans may still turn out to be none.
    pub(super) fn values(&self) -> impl Iterator<Item = Result<Value<'a>, HeaderFault>> {
        let (mut reader, element) = (Reader::new(self.bytes), self.element);
        (0..self.len).map(move |_| Value::read_scalar(&mut reader, element))
    }
}
