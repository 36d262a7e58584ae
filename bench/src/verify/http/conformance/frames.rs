//! What most cases are made of.

use weft_kit::raw2::frame::{CONTINUATION, END_HEADERS, END_STREAM, HEADERS};
use weft_kit::raw2::{Block, Frame};

/// Frames of requests to one authority.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frames<'a> {
    authority: &'a str,
}

impl<'a> Frames<'a> {
    pub(super) const fn new(authority: &'a str) -> Self {
        Self { authority }
    }

    pub(super) const fn authority(&self) -> &'a str {
        self.authority
    }

    /// The fields of a GET.
    pub(super) fn fields(&self) -> Block {
        Block::request("GET", self.authority, "/")
    }

    /// The fields of a POST.
    pub(super) fn post_fields(&self) -> Block {
        Block::request("POST", self.authority, "/")
    }

    /// A whole GET.
    pub(super) fn get(&self, stream: u32) -> Frame {
        Frame::headers(stream, END_STREAM, self.fields().bytes())
    }

    /// A GET with these fields instead.
    pub(super) fn with(&self, fields: Block) -> Frame {
        Frame::headers(1, END_STREAM, fields.bytes())
    }

    /// The head of a POST; a body follows.
    pub(super) fn post(&self, stream: u32) -> Frame {
        Frame::headers(stream, 0, self.post_fields().bytes())
    }

    /// The beginning of a head that CONTINUATION ends; `flags` besides.
    pub(super) fn begun(&self, stream: u32, flags: u8) -> Frame {
        Frame::new(HEADERS, flags, stream, self.fields().bytes())
    }

    /// A CONTINUATION with a field, the last one or not.
    pub(super) fn more(&self, stream: u32, is_last: Last) -> Frame {
        let flags = match is_last {
            Last::Yes => END_HEADERS,
            Last::No => 0,
        };
        let block = Block::new().literal("x-more", "1").bytes();
        Frame::new(CONTINUATION, flags, stream, block)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Yes,
    No,
}
