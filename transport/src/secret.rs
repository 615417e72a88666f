//! The job's secret, and how two ends prove to each other that they know it.
//!
//! The proof is a challenge and response with HMAC-SHA-256 (RFC 2104, FIPS 180-4) in three
//! messages of fixed size. Each side answers the other's random challenge under a label of its
//! own, so that no answer can be replayed, nor reflected to the side it came from. The secret
//! itself never travels.
//!
//! ```text
//! connector                                   acceptor
//!     | hello: magic, from, to, challenge         |   32 bytes
//!     |------------------------------------------>|
//!     |                  challenge, accept proof  |   48 bytes
//!     |<------------------------------------------|
//!     | connect proof                             |   32 bytes
//!     |------------------------------------------>|
//! ```
//!
//! The proofs also say whether their maker puts TLS on the connection next, so that two ends that differ in
//! that learn it from each other and not from noise.
//!
//! The acceptor has read 64 bytes, and allocated nothing by them, when it knows the peer. This
//! module is plain computation over those messages: who carries them is up to the caller.

use std::fmt;

use ring::{hmac, rand, rand::SecureRandom};

use crate::{Error, Rank};

/// Starts every hello; the last byte is the version of all that follows.
const MAGIC: [u8; 8] = *b"updraft\x01";
const CHALLENGE_BYTES: usize = 16;
const PROOF_BYTES: usize = 32;
/// The label of what only the two ends know.
const SESSION: &[u8] = b"updraft session";

/// What the connector sends first.
pub const HELLO_BYTES: usize = MAGIC.len() + 8 + CHALLENGE_BYTES;
/// What the acceptor answers.
pub const ANSWER_BYTES: usize = CHALLENGE_BYTES + PROOF_BYTES;
/// What the connector sends last.
pub const FINISH_BYTES: usize = PROOF_BYTES;

const _: () = assert!(
    HELLO_BYTES + FINISH_BYTES == 64,
    "at most 64 bytes before the proof"
);

/// What the processes of one job share and nobody else knows. It prints as dots.
#[derive(Clone)]
pub struct Secret {
    bytes: [u8; Self::BYTES],
    key: hmac::Key,
}

impl Secret {
    /// Length of a secret.
    pub const BYTES: usize = 32;

    /// A fresh secret from the system's random source.
    ///
    /// # Errors
    ///
    /// [`Error::Random`] when the system has no randomness to give.
    pub fn random() -> Result<Self, Error> {
        random().map(Self::from)
    }

    /// The bytes to hand to a process of the same job, over a channel nobody else reads.
    pub fn as_bytes(&self) -> &[u8; Self::BYTES] {
        &self.bytes
    }

    /// The proof that its maker knows the secret, bound to this conversation and `label`.
    fn prove(&self, label: &[u8], transcript: &[&[u8]]) -> [u8; PROOF_BYTES] {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(label);
        for part in transcript {
            context.update(part);
        }
        let tag = context.sign();
        let mut proof = [0; PROOF_BYTES];
        proof.copy_from_slice(tag.as_ref());
        proof
    }
}

impl From<[u8; Self::BYTES]> for Secret {
    fn from(bytes: [u8; Self::BYTES]) -> Self {
        Self {
            bytes,
            key: hmac::Key::new(hmac::HMAC_SHA256, &bytes),
        }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Why a proof was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The first bytes are not those of this protocol and version.
    #[error("it does not speak this version of updraft")]
    Protocol,
    /// The hello is addressed to another rank, or comes from an impossible one.
    #[error("it greets a rank that is not here")]
    Address,
    /// The process belongs to another user of this node.
    #[error("it belongs to another user")]
    User,
    /// It puts TLS on its connections.
    #[error("it uses TLS, and we do not")]
    Tls,
    /// It puts no TLS on its connections.
    #[error("it does not use TLS, as we do")]
    NoTls,
    /// The proof is not one that the secret makes.
    #[error("it did not prove that it knows the job's secret")]
    Proof,
}

/// What only the two ends of one conversation know. It prints as dots.
#[derive(Clone)]
pub(crate) struct Session([u8; PROOF_BYTES]);

impl Session {
    pub(crate) fn as_bytes(&self) -> &[u8; PROOF_BYTES] {
        &self.0
    }
}

impl From<[u8; PROOF_BYTES]> for Session {
    fn from(bytes: [u8; PROOF_BYTES]) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Session(..)")
    }
}

/// What a proof is made for: an end of the conversation, by whether it uses TLS.
fn accept_label(tls: bool) -> &'static [u8] {
    if tls {
        b"updraft accept tls"
    } else {
        b"updraft accept"
    }
}

fn connect_label(tls: bool) -> &'static [u8] {
    if tls {
        b"updraft connect tls"
    } else {
        b"updraft connect"
    }
}

/// Compares a proof with what it should be for the way we use TLS, and for the other way.
fn check(
    tls: bool,
    expected: &[u8; PROOF_BYTES],
    otherwise: &[u8; PROOF_BYTES],
    given: &[u8],
) -> Result<(), Refusal> {
    let differs = equal(otherwise, given);
    equal(expected, given).map_err(|refusal| match (differs, tls) {
        (Err(_), _) => refusal,
        (Ok(()), true) => Refusal::NoTls,
        (Ok(()), false) => Refusal::Tls,
    })
}

/// The connecting side of a proof.
#[derive(Debug, Clone)]
pub struct Connector {
    secret: Secret,
    hello: [u8; HELLO_BYTES],
    tls: bool,
}

impl Connector {
    /// Starts a conversation of rank `from` with rank `to`. [`hello`](Self::hello) is its first message.
    ///
    /// # Errors
    ///
    /// [`Error::Random`] when the system has no randomness to give.
    pub fn new(secret: &Secret, from: Rank, to: Rank) -> Result<Self, Error> {
        let mut hello = [0; HELLO_BYTES];
        hello[..8].copy_from_slice(&MAGIC);
        hello[8..12].copy_from_slice(&from.to_le_bytes());
        hello[12..16].copy_from_slice(&to.to_le_bytes());
        hello[16..].copy_from_slice(&random::<CHALLENGE_BYTES>()?);
        Ok(Self {
            secret: secret.clone(),
            hello,
            tls: false,
        })
    }

    /// The same, of an end that puts `tls` on the connection next.
    pub(crate) fn with_tls(self, tls: bool) -> Self {
        Self { tls, ..self }
    }

    /// The first message.
    pub fn hello(&self) -> &[u8; HELLO_BYTES] {
        &self.hello
    }

    /// Checks the acceptor's answer and makes the last message.
    ///
    /// # Errors
    ///
    /// [`Refusal::Proof`] when the acceptor does not know the secret, and [`Refusal::Tls`] or
    /// [`Refusal::NoTls`] when it does but would go on differently.
    pub fn finish(&self, answer: &[u8; ANSWER_BYTES]) -> Result<[u8; FINISH_BYTES], Refusal> {
        let (_, proof) = answer.split_at(CHALLENGE_BYTES);
        let [expected, otherwise] =
            [self.tls, !self.tls].map(|tls| self.prove(accept_label(tls), answer));
        check(self.tls, &expected, &otherwise, proof)?;
        Ok(self.proof(answer))
    }

    /// The last message, whatever the answer: an acceptor that differs in TLS learns it from this.
    pub(crate) fn proof(&self, answer: &[u8; ANSWER_BYTES]) -> [u8; FINISH_BYTES] {
        self.prove(connect_label(self.tls), answer)
    }

    /// What both ends know and nobody else.
    pub(crate) fn session(&self, answer: &[u8; ANSWER_BYTES]) -> Session {
        Session(self.prove(SESSION, answer))
    }

    fn prove(&self, label: &[u8], answer: &[u8; ANSWER_BYTES]) -> [u8; PROOF_BYTES] {
        let transcript = [&self.hello[..], &answer[..CHALLENGE_BYTES]];
        self.secret.prove(label, &transcript)
    }
}

/// The accepting side of a proof.
#[derive(Debug, Clone)]
pub struct Acceptor {
    from: Rank,
    tls: bool,
    answer: [u8; ANSWER_BYTES],
    expected: [u8; PROOF_BYTES],
    otherwise: [u8; PROOF_BYTES],
    session: Session,
}

impl Acceptor {
    /// Reads a hello addressed to rank `here`. [`answer`](Self::answer) is the reply.
    ///
    /// # Errors
    ///
    /// The [`Refusal`], or [`Error::Random`] when the system has no randomness to give.
    pub fn new(
        secret: &Secret,
        here: Rank,
        hello: &[u8; HELLO_BYTES],
    ) -> Result<Result<Self, Refusal>, Error> {
        Self::with_tls(secret, here, hello, false)
    }

    /// The same, of an end that puts `tls` on the connection next.
    pub(crate) fn with_tls(
        secret: &Secret,
        here: Rank,
        hello: &[u8; HELLO_BYTES],
        tls: bool,
    ) -> Result<Result<Self, Refusal>, Error> {
        if hello[..8] != MAGIC {
            return Ok(Err(Refusal::Protocol));
        }
        let rank_at = |at: usize| {
            u32::from_le_bytes([hello[at], hello[at + 1], hello[at + 2], hello[at + 3]])
        };
        if rank_at(12) != here {
            return Ok(Err(Refusal::Address));
        }
        let challenge = random::<CHALLENGE_BYTES>()?;
        let transcript = [&hello[..], &challenge];
        let mut answer = [0; ANSWER_BYTES];
        answer[..CHALLENGE_BYTES].copy_from_slice(&challenge);
        answer[CHALLENGE_BYTES..].copy_from_slice(&secret.prove(accept_label(tls), &transcript));
        let [expected, otherwise] =
            [tls, !tls].map(|tls| secret.prove(connect_label(tls), &transcript));
        Ok(Ok(Self {
            from: rank_at(8),
            tls,
            answer,
            expected,
            otherwise,
            session: Session(secret.prove(SESSION, &transcript)),
        }))
    }

    /// The reply to the hello.
    pub fn answer(&self) -> &[u8; ANSWER_BYTES] {
        &self.answer
    }

    /// Checks the last message; returns the rank that the peer has proved to speak for.
    ///
    /// # Errors
    ///
    /// [`Refusal::Proof`] when the peer does not know the secret, and [`Refusal::Tls`] or
    /// [`Refusal::NoTls`] when it does but would go on differently.
    pub fn check(&self, finish: &[u8; FINISH_BYTES]) -> Result<Rank, Refusal> {
        check(self.tls, &self.expected, &self.otherwise, finish)?;
        Ok(self.from)
    }

    /// What both ends know and nobody else.
    pub(crate) fn session(&self) -> Session {
        self.session.clone()
    }
}

/// Compares proofs in a time that does not tell how much of them agrees.
fn equal(expected: &[u8; PROOF_BYTES], given: &[u8]) -> Result<(), Refusal> {
    let difference = expected
        .iter()
        .zip(given)
        .fold(0, |seen, (a, b)| std::hint::black_box(seen | (a ^ b)));
    if difference == 0 && given.len() == PROOF_BYTES {
        Ok(())
    } else {
        Err(Refusal::Proof)
    }
}

/// Random bytes of the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let mut bytes = [0; N];
    rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Random)?;
    Ok(bytes)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from([byte; Secret::BYTES])
    }

    fn answer_to(secret: &Secret, hello: &[u8; HELLO_BYTES]) -> Result<Acceptor, Refusal> {
        Acceptor::new(secret, 2, hello).unwrap()
    }

    #[test]
    fn both_ends_learn_that_the_other_knows_the_secret() {
        let connector = Connector::new(&secret(1), 7, 2).unwrap();
        let acceptor = answer_to(&secret(1), connector.hello()).unwrap();
        let finish = connector.finish(acceptor.answer()).unwrap();
        assert_eq!(acceptor.check(&finish), Ok(7));
    }

    #[test]
    fn an_end_without_the_secret_is_refused_by_either_side() {
        let stranger = Connector::new(&secret(9), 7, 2).unwrap();
        let acceptor = answer_to(&secret(1), stranger.hello()).unwrap();
        assert_eq!(stranger.finish(acceptor.answer()), Err(Refusal::Proof));
        assert_eq!(acceptor.check(&[0; FINISH_BYTES]), Err(Refusal::Proof));
    }

    #[test]
    fn ends_that_differ_in_tls_learn_it_and_those_that_agree_share_a_session() {
        for [here, there] in [[false; 2], [false, true], [true, false], [true; 2]] {
            let connector = Connector::new(&secret(1), 7, 2).unwrap().with_tls(here);
            let acceptor = Acceptor::with_tls(&secret(1), 2, connector.hello(), there);
            let acceptor = acceptor.unwrap().unwrap();
            let refusal = |ours| if ours { Refusal::NoTls } else { Refusal::Tls };
            let finish = connector.finish(acceptor.answer());
            let checked = acceptor.check(&connector.proof(acceptor.answer()));
            if here == there {
                assert_eq!((finish.is_ok(), checked), (true, Ok(7)));
                let sessions = [connector.session(acceptor.answer()), acceptor.session()];
                assert_eq!(sessions[0].as_bytes(), sessions[1].as_bytes());
            } else {
                assert_eq!(finish, Err(refusal(here)));
                assert_eq!(checked, Err(refusal(there)));
            }
        }
    }

    #[test]
    fn a_proof_cannot_be_replayed_or_reflected() {
        let connector = Connector::new(&secret(1), 7, 2).unwrap();
        let first = answer_to(&secret(1), connector.hello()).unwrap();
        let finish = connector.finish(first.answer()).unwrap();
        let second = answer_to(&secret(1), connector.hello()).unwrap();
        assert_eq!(second.check(&finish), Err(Refusal::Proof), "replayed");
        let (_, accept_proof) = first.answer().split_at(CHALLENGE_BYTES);
        assert_eq!(
            first.check(accept_proof.try_into().unwrap()),
            Err(Refusal::Proof),
            "reflected"
        );
    }

    #[test]
    fn the_claimed_rank_is_part_of_what_is_proved() {
        let connector = Connector::new(&secret(1), 7, 2).unwrap();
        let mut forged = *connector.hello();
        forged[8] = 6;
        let acceptor = answer_to(&secret(1), &forged).unwrap();
        assert_eq!(connector.finish(acceptor.answer()), Err(Refusal::Proof));
    }

    #[test]
    fn a_hello_of_another_protocol_or_for_another_rank_is_refused_before_any_proof() {
        let connector = Connector::new(&secret(1), 7, 3).unwrap();
        assert_eq!(
            answer_to(&secret(1), connector.hello()).unwrap_err(),
            Refusal::Address
        );
        assert_eq!(
            answer_to(&secret(1), &[0; HELLO_BYTES]).unwrap_err(),
            Refusal::Protocol
        );
    }

    #[test]
    fn a_secret_prints_nothing_of_itself() {
        assert_eq!(format!("{:?}", secret(0x5a)), "Secret(..)");
    }
}
