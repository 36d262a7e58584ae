//! The rules of strict HTTP/1 reading, in one table: the word that metrics and log say, and the
//! reason that decides the status.

use crate::error::Reason;

/// Why bytes are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Decides the status of the answer.
    pub reason: Reason,
    /// The word of the rule: metric label, first word in the log.
    pub rule: &'static str,
}

/// A rule that a message can break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)] // the table says what each means
pub enum Rule {
    BareLf,
    BareCr,
    Control,
    EmptyLines,
    RequestLine,
    Http2Preface,
    Version,
    Target,
    TargetForm,
    TargetTooLong,
    HeadTooLarge,
    TooManyFields,
    ObsFold,
    FieldName,
    SpaceBeforeColon,
    NoHost,
    TwoHosts,
    Host,
    Length,
    TwoLengths,
    Coding,
    UnknownCoding,
    TwoCodings,
    LengthAndCoding,
    CodingInHttp10,
    NoLength,
    ConnectWithBody,
    ChunkSize,
    ChunkExtension,
    ChunkEnd,
    TrailersTooLarge,
    StatusLine,
    UnaskedAnswer,
    UnaskedSwitch,
    TooManyInformational,
    StatusWithBody,
    CutShort,
}

/// One row of the table.
#[derive(Debug)]
pub struct Row {
    /// The rule.
    pub rule: Rule,
    /// The word.
    pub word: &'static str,
    /// The reason when a client breaks it; a server's is always
    /// [`Reason::PeerProtocolError`].
    pub reason: Reason,
    /// What is refused.
    pub sentence: &'static str,
}

const fn row(rule: Rule, word: &'static str, reason: Reason, sentence: &'static str) -> Row {
    Row {
        rule,
        word,
        reason,
        sentence,
    }
}

/// The table, in the order of [`Rule`].
#[rustfmt::skip]
pub const TABLE: [Row; 37] = {
    use Reason::{ClientProtocolError as Bad, HeadersTooLarge, NotImplemented, PeerProtocolError as Peer, TargetTooLong};
    [
        row(Rule::BareLf, "bare_lf", Bad, "a line that ends in LF alone"),
        row(Rule::BareCr, "bare_cr", Bad, "a CR that ends no line"),
        row(Rule::Control, "control", Bad, "a control character in a field's value or a reason phrase"),
        row(Rule::EmptyLines, "empty_lines", Bad, "more than one empty line before a request"),
        row(Rule::RequestLine, "request_line", Bad, "a request line that is not method, space, target, space, version"),
        row(Rule::Http2Preface, "http2_preface", Bad, "the preface of HTTP/2 on a connection of HTTP/1"),
        row(Rule::Version, "version", Bad, "a version that is not HTTP/1.0 or HTTP/1.1"),
        row(Rule::Target, "target", Bad, "a target with a byte that no target may have, or with a bad authority"),
        row(Rule::TargetForm, "target_form", Bad, "a target in a form that is not for this method"),
        row(Rule::TargetTooLong, "target_too_long", TargetTooLong, "a target over MAX_TARGET_BYTES"),
        row(Rule::HeadTooLarge, "head_too_large", HeadersTooLarge, "a head over MAX_HEAD_BYTES"),
        row(Rule::TooManyFields, "too_many_fields", HeadersTooLarge, "more than MAX_FIELDS fields and trailers"),
        row(Rule::ObsFold, "obs_fold", Bad, "a field that goes on in the next line"),
        row(Rule::FieldName, "field_name", Bad, "a field whose name is empty or no token, or without a colon"),
        row(Rule::SpaceBeforeColon, "space_before_colon", Bad, "a space between a field's name and the colon"),
        row(Rule::NoHost, "no_host", Bad, "HTTP/1.1 without Host"),
        row(Rule::TwoHosts, "two_hosts", Bad, "more than one Host"),
        row(Rule::Host, "host", Bad, "a Host that is no host with an optional port"),
        row(Rule::Length, "length", Bad, "a Content-Length that is not one number below 2^63"),
        row(Rule::TwoLengths, "two_lengths", Bad, "more than one Content-Length, even if equal"),
        row(Rule::Coding, "coding", Bad, "a Transfer-Encoding that is no list of codings, or whose chunked is not once and last"),
        row(Rule::UnknownCoding, "unknown_coding", NotImplemented, "a Transfer-Encoding other than chunked"),
        row(Rule::TwoCodings, "two_codings", Bad, "more than one Transfer-Encoding"),
        row(Rule::LengthAndCoding, "length_and_coding", Bad, "Content-Length together with Transfer-Encoding"),
        row(Rule::CodingInHttp10, "coding_in_http10", Bad, "Transfer-Encoding in HTTP/1.0"),
        row(Rule::NoLength, "no_length", Bad, "POST, PUT or PATCH of HTTP/1.0 without Content-Length"),
        row(Rule::ConnectWithBody, "connect_with_body", Bad, "CONNECT with a body"),
        row(Rule::ChunkSize, "chunk_size", Bad, "a chunk's size that is not 1 to 16 hexadecimal digits below 2^63"),
        row(Rule::ChunkExtension, "chunk_extension", Bad, "a chunk extension with a control character, or over its limit"),
        row(Rule::ChunkEnd, "chunk_end", Bad, "a chunk longer or shorter than its size"),
        row(Rule::TrailersTooLarge, "trailers_too_large", HeadersTooLarge, "trailers over MAX_TRAILER_BYTES"),
        row(Rule::StatusLine, "status_line", Peer, "a status line that is not version, space, status from 100 to 599, reason"),
        row(Rule::UnaskedAnswer, "unasked_answer", Peer, "bytes when no answer is waited for"),
        row(Rule::UnaskedSwitch, "unasked_switch", Peer, "101 to a request that did not ask for it"),
        row(Rule::TooManyInformational, "too_many_informational", Peer, "more than MAX_INFORMATIONAL answers of 1xx"),
        row(Rule::StatusWithBody, "status_with_body", Peer, "a body announced by 1xx, 204, or 2xx to CONNECT"),
        row(Rule::CutShort, "cut_short", Peer, "a connection that ends within an answer"),
    ]
};

impl Rule {
    const fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The word of the rule.
    #[must_use]
    pub const fn word(self) -> &'static str {
        self.row().word
    }

    /// The refusal of a client's bytes.
    #[must_use]
    pub const fn of_the_client(self) -> Refusal {
        Refusal {
            reason: self.row().reason,
            rule: self.row().word,
        }
    }

    /// The refusal of a server's bytes.
    #[must_use]
    pub const fn of_the_server(self) -> Refusal {
        Refusal {
            reason: Reason::PeerProtocolError,
            rule: self.row().word,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::TABLE;

    #[test]
    fn the_table_is_in_the_order_of_the_enum_and_its_words_are_unique() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.rule as usize, index, "{}", row.word);
        }
        let mut words: Vec<_> = TABLE.iter().map(|row| row.word).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), TABLE.len());
    }
}
