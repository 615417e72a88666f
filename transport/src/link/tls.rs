//! TLS 1.3 on the connection of a link, when the job asks for it.
//!
//! Both ends have proved to each other that they know the job's secret before the first byte of TLS, so a
//! stranger reaches no more of this code than of any other. The key pair of the connection, and the
//! certificate that shows it, are made at both ends from the secret and the challenges of that
//! proof: nothing is stored or handed out, no authority has to be trusted, and a certificate is good for
//! one connection, between the two ranks that proved themselves on it. Both ends show it and demand
//! it. What is said is encrypted under keys of the handshake (X25519), which the secret does not give away
//! even when it becomes known later.

use std::{
    fmt,
    io::{self, IoSlice, IoSliceMut, Read, Write},
    os::fd::{AsRawFd, RawFd},
    sync::Arc,
    time::Duration,
};

use mio::net::TcpStream;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, DistinguishedName,
    ServerConfig, ServerConnection, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider, ring as provider, ring::cipher_suite},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    time_provider::TimeProvider,
    version::TLS13,
};

use crate::secret::Session;

/// Bytes of messages and ciphertext that wait for the socket, at most.
const BUFFER_BYTES: usize = 256 << 10;
/// Ciphertext that is read by one system call.
const READ_BYTES: usize = 128 << 10;

/// Which end of the connection we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Connector,
    Acceptor,
}

/// What carries the bytes of a link: a TCP connection, as it is or under TLS.
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<Tls>),
}

impl Wire {
    /// Puts TLS on a connection whose ends have proved themselves.
    pub(crate) fn tls(stream: TcpStream, role: Role, session: &Session) -> Result<Self, TlsError> {
        Ok(Self::Tls(Box::new(Tls::new(stream, role, session)?)))
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(tls) => &tls.stream,
        }
    }

    /// Takes bytes to be written; `WouldBlock` when there is room for none.
    pub(crate) fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => match slices {
                [slice] => stream.write(slice),
                slices => stream.write_vectored(slices),
            },
            Self::Tls(tls) => tls.write_vectored(slices),
        }
    }

    /// Whether what is written has to wait for something to be read.
    pub(crate) fn is_shaking_hands(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.session.is_handshaking())
    }

    /// Whether bytes that were taken have not been written. (While hands are shaken, they are kept.)
    pub(crate) fn holds_back(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.session.wants_write() || tls.session.is_handshaking())
    }

    /// Writes the bytes that were taken; `WouldBlock` when the socket does not take them all.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => Ok(()),
            Self::Tls(tls) => tls.push(),
        }
    }

    /// The same as [`read_vectored`](Self::read_vectored), to one place.
    pub(crate) fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(bytes),
            Self::Tls(tls) => tls.read_vectored(&mut [IoSliceMut::new(bytes)]),
        }
    }

    /// Reads what there is; `WouldBlock` only when there is nothing left anywhere.
    pub(crate) fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read_vectored(slices),
            Self::Tls(tls) => tls.read_vectored(slices),
        }
    }

    /// Says that no more will be written.
    pub(crate) fn say_end(&mut self) {
        if let Self::Tls(tls) = self {
            tls.session.send_close_notify();
            // What cannot be said any more is not missed: the link has its own goodbye.
            let _ = tls.push();
        }
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.stream().as_raw_fd()
    }
}

/// A TCP connection under TLS.
pub(crate) struct Tls {
    stream: TcpStream,
    session: Connection,
    /// Ciphertext that was read, and how much of it the session has not seen.
    read: Box<[u8]>,
    unseen: std::ops::Range<usize>,
}

impl Tls {
    fn new(stream: TcpStream, role: Role, session: &Session) -> Result<Self, TlsError> {
        let mut session = match role {
            Role::Connector => Connection::from(client(session)?),
            Role::Acceptor => Connection::from(server(session)?),
        };
        session.set_buffer_limit(Some(BUFFER_BYTES));
        Ok(Self {
            stream,
            session,
            read: vec![0; READ_BYTES].into(),
            unseen: 0..0,
        })
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            let taken = self.session.writer().write_vectored(slices)?;
            match self.push() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                _ if taken > 0 => return Ok(taken),
                // There is room now. Without another try, the socket would not tell of it again.
                Ok(()) if !self.session.is_handshaking() => {}
                _ => return Err(io::ErrorKind::WouldBlock.into()),
            }
        }
    }

    fn push(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut self.stream) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read_vectored(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            match self.take_decrypted(slices)? {
                Some(taken) => return Ok(taken),
                None if self.unseen.is_empty() => {
                    let read = self.stream.read(&mut self.read)?;
                    if read == 0 {
                        return Ok(0);
                    }
                    self.unseen = 0..read;
                }
                None => {}
            }
            let mut ciphertext = &self.read[self.unseen.clone()];
            self.unseen.start += self.session.read_tls(&mut ciphertext)?;
            let processed = self.session.process_new_packets();
            // What the handshake has to say, or what is wrong with it. If it cannot be written now, it
            // is when the link next flushes.
            let _ = self.push();
            processed.map_err(io::Error::other)?;
        }
    }

    /// What has been decrypted; `None` when that is nothing, zero when the peer has said its end.
    fn take_decrypted(&mut self, slices: &mut [IoSliceMut<'_>]) -> io::Result<Option<usize>> {
        let mut taken = 0;
        for slice in slices {
            let mut rest = &mut slice[..];
            while !rest.is_empty() {
                match self.session.reader().read(rest) {
                    Ok(0) => return Ok(Some(taken)),
                    Ok(read) => {
                        taken += read;
                        rest = &mut rest[read..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        return Ok((taken > 0).then_some(taken));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(Some(taken))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Plain(_) => "Wire::Plain",
            Self::Tls(_) => "Wire::Tls",
        })
    }
}

/// Why TLS could not be put on a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
    #[error("TLS: the key pair could not be made")]
    Key,
}

fn client(session: &Session) -> Result<ClientConnection, TlsError> {
    let Identity { certificate, key } = Identity::of(session)?;
    let verifier = Arc::new(Pinned::new(certificate.clone()));
    let mut config = ClientConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&TLS13])?
        .dangerous() // Of the verifier, which is our own.
        .with_custom_certificate_verifier(verifier)
        .with_client_auth_cert(vec![certificate], key)?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    let name = ServerName::from(std::net::Ipv4Addr::LOCALHOST); // Neither sent nor looked at.
    Ok(ClientConnection::new(Arc::new(config), name)?)
}

fn server(session: &Session) -> Result<ServerConnection, TlsError> {
    let Identity { certificate, key } = Identity::of(session)?;
    let verifier = Arc::new(Pinned::new(certificate.clone()));
    let mut config = ServerConfig::builder_with_details(provider(), Arc::new(NoClock))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    config.send_tls13_tickets = 0;
    Ok(ServerConnection::new(Arc::new(config))?)
}

/// AES-128 first: it is the fastest where the processor helps, and no weaker than the key exchange.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = provider::default_provider();
    provider.cipher_suites = vec![
        cipher_suite::TLS13_AES_128_GCM_SHA256,
        cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// Certificates here have no term, so nobody asks for the time.
#[derive(Debug)]
struct NoClock;

impl TimeProvider for NoClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::ZERO))
    }
}

/// Trusts one certificate.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
}

impl Pinned {
    fn new(certificate: CertificateDer<'static>) -> Self {
        Self { certificate }
    }

    fn check(&self, shown: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if *shown == self.certificate {
            Ok(())
        } else {
            let error = rustls::CertificateError::ApplicationVerificationFailure;
            Err(rustls::Error::InvalidCertificate(error))
        }
    }
}

/// The checks that both ends make.
macro_rules! checks_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let incompatible = rustls::PeerIncompatible::Tls12NotOffered;
            Err(rustls::Error::PeerIncompatible(incompatible))
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signature: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            let algorithms = provider::default_provider().signature_verification_algorithms;
            crypto::verify_tls13_signature(message, certificate, signature, &algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }
    };
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(shown).map(|()| ServerCertVerified::assertion())
    }

    checks_signatures!();
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(shown).map(|()| ClientCertVerified::assertion())
    }

    checks_signatures!();
}

/// The certificate of a connection, and its key.
struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Identity {
    /// What both ends make of what only they know. Ed25519 signs without drawing a random number (RFC 8032), so
    /// the certificates are equal to the byte.
    fn of(session: &Session) -> Result<Self, TlsError> {
        let seed = session.as_bytes();
        let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| TlsError::Key)?;
        // RFC 8410, section 7: version 0, the algorithm, and the seed as a string in a string.
        let wrapped = der::element(der::OCTETS, &[&der::element(der::OCTETS, &[seed])]);
        let key = der::element(der::SEQUENCE, &[&[2, 1, 0], &algorithm(), &wrapped]);
        Ok(Self {
            certificate: certificate(&pair).into(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key)),
        })
    }
}

/// Ed25519, as RFC 8410 names it.
fn algorithm() -> Vec<u8> {
    der::element(der::SEQUENCE, &[&[6, 3, 43, 101, 112]])
}

/// A self-signed certificate (RFC 5280): version 3, number 1, of and for `CN=updraft`, without a term.
fn certificate(pair: &Ed25519KeyPair) -> Vec<u8> {
    let version = der::element(der::CONTEXT_0, &[&[2, 1, 2]]);
    let number = [2, 1, 1];
    let common_name = der::element(der::UTF8, &[b"updraft"]);
    let name = der::element(der::SEQUENCE, &[&[6, 3, 85, 4, 3], &common_name]);
    let name = der::element(der::SEQUENCE, &[&der::element(der::SET, &[&name])]);
    let from = der::element(der::UTC_TIME, &[b"700101000000Z"]);
    let until = der::element(der::GENERALIZED_TIME, &[b"99991231235959Z"]);
    let term = der::element(der::SEQUENCE, &[&from, &until]);
    let public = der::element(der::BITS, &[&[0], pair.public_key().as_ref()]);
    let public = der::element(der::SEQUENCE, &[&algorithm(), &public]);
    let body = [
        &version[..],
        &number,
        &algorithm(),
        &name,
        &term,
        &name,
        &public,
    ];
    let body = der::element(der::SEQUENCE, &body);
    let signature = pair.sign(&body);
    let signature = der::element(der::BITS, &[&[0], signature.as_ref()]);
    der::element(der::SEQUENCE, &[&body, &algorithm(), &signature])
}

/// As much of the Distinguished Encoding Rules (X.690) as a small certificate needs.
mod der {
    pub(super) const BITS: u8 = 0x03;
    pub(super) const OCTETS: u8 = 0x04;
    pub(super) const UTF8: u8 = 0x0c;
    pub(super) const UTC_TIME: u8 = 0x17;
    pub(super) const GENERALIZED_TIME: u8 = 0x18;
    pub(super) const SEQUENCE: u8 = 0x30;
    pub(super) const SET: u8 = 0x31;
    pub(super) const CONTEXT_0: u8 = 0xa0;

    /// One element: its kind, its length, and the parts it consists of.
    pub(super) fn element(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let content = parts.concat();
        let len = content.len().to_be_bytes();
        let len = &len[content.len().leading_zeros() as usize / 8..];
        let mut element = vec![kind];
        match content.len() {
            short @ ..0x80 => element.push(short as u8),
            _ => {
                element.push(0x80 | len.len() as u8);
                element.extend_from_slice(len);
            }
        }
        element.extend_from_slice(&content);
        element
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn session(byte: u8) -> Session {
        Session::from([byte; 32])
    }

    /// Lets two ends talk until neither has more to say; what the handshake says to that.
    fn shake_hands(mut here: Connection, mut there: Connection) -> Result<(), rustls::Error> {
        for _ in 0..10 {
            for (from, to) in [(0, 1), (1, 0)] {
                let ends = [&mut here, &mut there];
                let mut bytes = Vec::new();
                while ends[from].wants_write() {
                    ends[from].write_tls(&mut bytes).unwrap();
                }
                let mut bytes = &bytes[..];
                while !bytes.is_empty() {
                    ends[to].read_tls(&mut bytes).unwrap();
                    ends[to].process_new_packets()?;
                }
            }
        }
        assert!(!here.is_handshaking() && !there.is_handshaking());
        assert_eq!(here.peer_certificates(), there.peer_certificates());
        Ok(())
    }

    #[test]
    fn ends_of_the_same_conversation_shake_hands() {
        let (here, there) = (client(&session(1)).unwrap(), server(&session(1)).unwrap());
        shake_hands(here.into(), there.into()).unwrap();
    }

    #[test]
    fn ends_of_different_conversations_do_not() {
        let (here, there) = (client(&session(1)).unwrap(), server(&session(2)).unwrap());
        let refused = shake_hands(here.into(), there.into()).unwrap_err();
        assert!(
            matches!(refused, rustls::Error::InvalidCertificate(_)),
            "{refused}"
        );
    }

    #[test]
    fn an_acceptor_demands_the_certificate_too() {
        let mut config = ClientConfig::builder_with_details(provider(), Arc::new(NoClock))
            .with_protocol_versions(&[&TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned::new(
                Identity::of(&session(1)).unwrap().certificate,
            )))
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        let name = ServerName::from(std::net::Ipv4Addr::LOCALHOST);
        let here = ClientConnection::new(Arc::new(config), name).unwrap();
        let there = server(&session(1)).unwrap();
        let refused = shake_hands(here.into(), there.into()).unwrap_err();
        assert!(
            matches!(refused, rustls::Error::NoCertificatesPresented),
            "{refused}"
        );
    }

    #[test]
    fn lengths_are_encoded_as_the_rules_say() {
        assert_eq!(der::element(4, &[]), [4, 0]);
        assert_eq!(der::element(4, &[&[7; 127]])[..2], [4, 127]);
        assert_eq!(der::element(4, &[&[7; 128]])[..3], [4, 0x81, 128]);
        assert_eq!(der::element(4, &[&[7; 256]])[..4], [4, 0x82, 1, 0]);
    }
}
