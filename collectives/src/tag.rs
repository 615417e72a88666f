//! What the tags of messages between members of a group say.
//!
//! From the top: one bit that tells them from all other messages, three of the kind, sixteen of the group's context.
//! Then, of a collective, twelve of the call's number, one of whether the receiver may keep it, eleven of the step, twenty
//! of the call's signature; of a message
//! from one member to another, twelve of the size of its elements, thirty-two of the number it was sent under.

const OURS: u64 = 1 << 63;
const KIND_SHIFT: u32 = 60;
const CONTEXT_SHIFT: u32 = 44;
const CALL_SHIFT: u32 = 32;
const STEP_SHIFT: u32 = 20;
const ELEMENT_SHIFT: u32 = 32;

/// Calls that can be told apart.
pub(crate) const CALLS: u32 = 1 << (CONTEXT_SHIFT - CALL_SHIFT);
/// The bits of a signature.
pub(crate) const SIGNATURE_MASK: u32 = (1 << STEP_SHIFT) - 1;
const STEP_MASK: u32 = (1 << (CALL_SHIFT - STEP_SHIFT - 1)) - 1;
/// Of a message that its receiver may keep as long as it likes.
const KEPT: u64 = 1 << (CALL_SHIFT - 1);
/// Stands for elements of as many bytes and more.
const ELEMENT_MAX: usize = (1 << (CONTEXT_SHIFT - ELEMENT_SHIFT)) - 1;

/// In place of a context: what is said concerns all groups.
pub(crate) const ALL_GROUPS: u16 = u16::MAX;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Collective,
    Message,
    Notice,
    Other,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts {
    pub(crate) kind: Kind,
    pub(crate) context: u16,
}

#[inline]
pub(crate) fn is_ours(tag: u64) -> bool {
    tag & OURS != 0
}

pub(crate) fn parts(tag: u64) -> Parts {
    Parts {
        kind: match (tag >> KIND_SHIFT) & 7 {
            0 => Kind::Collective,
            1 => Kind::Message,
            2 => Kind::Notice,
            _ => Kind::Other,
        },
        context: (tag >> CONTEXT_SHIFT) as u16,
    }
}

fn new(kind: u64, context: u16) -> u64 {
    OURS | kind << KIND_SHIFT | u64::from(context) << CONTEXT_SHIFT
}

/// The tag of a step of a collective.
#[inline]
pub(crate) fn collective(context: u16, call: u32, step: u32, signature: u32) -> u64 {
    new(0, context)
        | u64::from(call % CALLS) << CALL_SHIFT
        | u64::from(step & STEP_MASK) << STEP_SHIFT
        | u64::from(signature & SIGNATURE_MASK)
}

/// The same of a message that its receiver may keep.
pub(crate) fn of_kept(tag: u64) -> u64 {
    tag | KEPT
}

/// Whether a message is of a collective and dropped by its receiver as soon as it has been read.
pub(crate) fn is_passing(tag: u64) -> bool {
    is_ours(tag) && parts(tag).kind == Kind::Collective && tag & KEPT == 0
}

/// Whether two tags are of the same call, whatever the step and the signature.
#[inline]
pub(crate) fn is_same_call(one: u64, other: u64) -> bool {
    (one ^ other) >> CALL_SHIFT == 0
}

/// The number of a call, as far as a tag tells it: modulo [`CALLS`].
pub(crate) fn call(tag: u64) -> u32 {
    (tag >> CALL_SHIFT) as u32 % CALLS
}

/// The signature of a call's message.
#[inline]
pub(crate) fn signature(tag: u64) -> u32 {
    tag as u32 & SIGNATURE_MASK
}

/// The tag of a message from one member to another, sent under `number`; without a size of its elements if it may be
/// read as any.
pub(crate) fn message(context: u16, element_bytes: Option<usize>, number: u32) -> u64 {
    let element = element_bytes.map_or(0, |bytes| bytes.min(ELEMENT_MAX)) as u64;
    new(1, context) | element << ELEMENT_SHIFT | u64::from(number)
}

/// What a message from one member to another was sent under.
pub(crate) fn of_message(tag: u64) -> u32 {
    tag as u32
}

/// The size of the elements of such a message; zero if it may be read as any.
pub(crate) fn element_bytes(tag: u64) -> usize {
    (tag >> ELEMENT_SHIFT) as usize & ELEMENT_MAX
}

/// Whether such a message can be read as elements of this size.
pub(crate) fn has_elements_of(tag: u64, bytes: usize) -> bool {
    [0, bytes.min(ELEMENT_MAX)].contains(&element_bytes(tag))
}

/// The tag of what is said about a group as a whole.
pub(crate) fn notice(context: u16) -> u64 {
    new(2, context)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_says_what_was_put_into_it() {
        let tag = collective(0xabcd, 4097, 5000, 0xf_ffff);
        assert!(is_ours(tag));
        assert_eq!(parts(tag).context, 0xabcd);
        assert_eq!(parts(tag).kind, Kind::Collective);
        assert_eq!(signature(tag), 0xf_ffff);
        assert_eq!(call(tag), 1);
        assert!(is_passing(tag) && !is_passing(of_kept(tag)));
        assert!(is_same_call(tag, of_kept(tag)) && signature(of_kept(tag)) == 0xf_ffff);
        assert!(is_same_call(tag, collective(0xabcd, 1, 7, 3)));
        assert!(!is_same_call(tag, collective(0xabcd, 2, 5000, 0xf_ffff)));
        assert!(!is_same_call(tag, collective(0xabce, 1, 5000, 0xf_ffff)));
        assert_eq!(parts(notice(9)).kind, Kind::Notice);
    }

    #[test]
    fn the_tag_of_a_message_says_how_it_can_be_read() {
        let tag = message(0xabcd, Some(12), u32::MAX);
        assert!(is_ours(tag));
        assert_eq!(
            (parts(tag).kind, parts(tag).context),
            (Kind::Message, 0xabcd)
        );
        assert_eq!((of_message(tag), element_bytes(tag)), (u32::MAX, 12));
        assert!(has_elements_of(tag, 12) && !has_elements_of(tag, 8));
        let of_any = message(1, None, 0);
        assert!(has_elements_of(of_any, 1) && has_elements_of(of_any, 5000));
        let of_large = message(1, Some(5000), 0);
        assert!(has_elements_of(of_large, 5000) && !has_elements_of(of_large, 904));
    }
}
