//! An HTTP/3 client of quinn's streams and a few frames written by hand: fast enough for a gibibyte, and
//! free to send what a library would not.

use std::{
    net::{Ipv4Addr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use quinn::{
    ClientConfig, Connection, Endpoint, EndpointConfig, IdleTimeout, RecvStream, SendStream,
    TokioRuntime, TransportConfig, VarInt, crypto::rustls::QuicClientConfig,
};
use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
};

use crate::harness::{
    client::Credential,
    site::{HOST, SERVER, Site},
};

/// Types of frames, and of the control stream (RFC 9114 sections 6.2 and 7.2).
const DATA: u64 = 0;
const HEADERS: u64 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u64 = 7;
const CONTROL: u8 = 0;
/// `H3_NO_ERROR` (RFC 9114 section 8.1).
const NO_ERROR: u32 = 0x100;

/// A client that hears nothing for so long gives up; longer than any pause of a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A field, name and value.
pub(super) type Field<'a> = (&'a str, &'a str);

/// Who connects; sessions are kept and resumed.
#[derive(Clone)]
pub(crate) struct Identity(Arc<QuicClientConfig>);

impl Identity {
    /// With that certificate.
    pub(crate) fn new(site: &Site, credential: &Credential) -> Result<Identity> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(site.authority.certificate())? {
            roots.add(certificate?)?;
        }
        let chain = CertificateDer::pem_file_iter(&credential.certificate)?;
        let chain = chain.collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_file(&credential.key)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        tls.alpn_protocols = vec![b"h3".to_vec()];
        Ok(Identity(Arc::new(QuicClientConfig::try_from(tls)?)))
    }

    fn settings(&self, patience: Duration) -> Result<ClientConfig> {
        let mut transport = TransportConfig::default();
        transport.max_idle_timeout(Some(IdleTimeout::try_from(patience)?));
        let mut settings = ClientConfig::new(self.0.clone());
        settings.transport_config(Arc::new(transport));
        Ok(settings)
    }
}

/// An endpoint on a socket of the namespace that the caller is in, with that address of it.
fn endpoint(source: Ipv4Addr) -> Result<Endpoint> {
    let socket = UdpSocket::bind((source, 0))?;
    Ok(Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(TokioRuntime))?)
}

/// One connection.
pub(crate) struct Client {
    pub(crate) quic: Connection,
    told_to_go: Arc<AtomicBool>,
    endpoint: Endpoint,
    _control: SendStream,
}

impl Drop for Client {
    fn drop(&mut self) {
        // Who listens for GOAWAY would keep it open.
        self.quic.close(VarInt::from_u32(NO_ERROR), b"");
    }
}

impl Client {
    /// Connects to the site's gateway.
    pub(crate) async fn connect(identity: &Identity) -> Result<Client> {
        Client::connect_within(identity, PATIENCE).await
    }

    /// Gives up after that time of silence.
    pub(crate) async fn connect_within(identity: &Identity, patience: Duration) -> Result<Client> {
        Client::connect_from(Ipv4Addr::UNSPECIFIED, identity, patience).await
    }

    /// From that address.
    pub(crate) async fn connect_from(
        source: Ipv4Addr,
        identity: &Identity,
        patience: Duration,
    ) -> Result<Client> {
        let endpoint = endpoint(source)?;
        let quic = endpoint.connect_with(identity.settings(patience)?, SERVER, HOST)?.await?;
        let mut control = quic.open_uni().await?;
        control.write_all(&[CONTROL, SETTINGS, 0]).await?;
        let told_to_go = Arc::new(AtomicBool::new(false));
        tokio::spawn(hear(quic.clone(), told_to_go.clone()));
        Ok(Client { quic, told_to_go, endpoint, _control: control })
    }

    /// Whether the server has said that it will take no more requests here.
    pub(crate) fn is_told_to_go(&self) -> bool {
        self.told_to_go.load(Ordering::Relaxed)
    }

    /// Says farewell, and waits until that is sent.
    pub(crate) async fn close(self) {
        self.quic.close(VarInt::from_u32(0), b"");
        self.endpoint.wait_idle().await;
    }

    /// Asks for a path; the status and the length of the answer.
    pub(crate) async fn get(&self, path: &str) -> Result<(u16, u64)> {
        let mut request = self.begin(&request("GET", path)).await?;
        request.send.finish()?;
        request.answer().await
    }

    /// Sends so many octets of `u`, and gives the answer's status and its body.
    pub(crate) async fn put(&self, path: &str, bytes: u64) -> Result<(u16, Vec<u8>)> {
        let mut request = self.begin(&request("PUT", path)).await?;
        request.begin_data(bytes).await?;
        let piece = Bytes::from(vec![b'u'; 64 * 1024]);
        let mut left = bytes;
        while left > 0 {
            let here = left.min(piece.len() as u64);
            request.send.write_chunk(piece.slice(..usize::try_from(here)?)).await?;
            left -= here;
        }
        request.whole_answer().await
    }

    /// Sends a head of exactly these fields, and nothing after it yet.
    pub(crate) async fn begin(&self, fields: &[Field<'_>]) -> Result<Exchange> {
        let (mut send, receive) = self.quic.open_bi().await?;
        let section = section(fields);
        let mut frame = vec![u8::try_from(HEADERS)?];
        integer(section.len() as u64, &mut frame);
        frame.extend_from_slice(&section);
        send.write_all(&frame).await?;
        Ok(Exchange { send, receive: Reader { receive, chunk: Bytes::new() } })
    }
}

/// The fields of an ordinary request.
pub(crate) fn request<'a>(method: &'a str, path: &'a str) -> [Field<'a>; 4] {
    [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)]
}

/// A request under way.
pub(crate) struct Exchange {
    pub(crate) send: SendStream,
    receive: Reader,
}

impl Exchange {
    /// Announces so many octets of the body.
    async fn begin_data(&mut self, bytes: u64) -> Result<()> {
        let mut head = vec![u8::try_from(DATA)?];
        integer(bytes, &mut head);
        Ok(self.send.write_all(&head).await?)
    }

    /// Sends a piece of the body.
    pub(crate) async fn send_piece(&mut self, piece: &[u8]) -> Result<()> {
        self.begin_data(piece.len() as u64).await?;
        Ok(self.send.write_all(piece).await?)
    }

    /// Ends the request, and reads its answer: the status and the body.
    pub(crate) async fn whole_answer(&mut self) -> Result<(u16, Vec<u8>)> {
        self.send.finish()?;
        self.whole().await
    }

    /// Reads the whole answer: its status and the length of its body.
    pub(crate) async fn answer(&mut self) -> Result<(u16, u64)> {
        self.read(|_| {}).await
    }

    /// Reads the whole answer: its status and its body.
    pub(crate) async fn whole(&mut self) -> Result<(u16, Vec<u8>)> {
        let mut body = Vec::new();
        let (status, _) = self.read(|octets| body.extend_from_slice(octets)).await?;
        Ok((status, body))
    }

    async fn read(&mut self, mut see: impl FnMut(&[u8])) -> Result<(u16, u64)> {
        let (mut status, mut bytes) = (0, 0);
        while let Some(kind) = self.receive.integer().await? {
            let length = self.receive.integer().await?.context("the frame's length")?;
            if kind == DATA {
                bytes += length;
                self.receive.pass(length, &mut see).await?;
                continue;
            }
            let mut payload = Vec::new();
            self.receive.pass(length, &mut |octets| payload.extend_from_slice(octets)).await?;
            // Interim answers come before, trailers behind.
            if kind == HEADERS && (status == 0 || status < 200) {
                status = status_of(&payload)?;
            }
        }
        Ok((status, bytes))
    }
}

/// Reads what the server says of the connection as a whole, until it ends.
async fn hear(quic: Connection, told_to_go: Arc<AtomicBool>) -> Result<()> {
    let mut others = Vec::new();
    loop {
        let mut stream = Reader { receive: quic.accept_uni().await?, chunk: Bytes::new() };
        if stream.integer().await? != Some(u64::from(CONTROL)) {
            // Of the field compression, which may not be closed either.
            others.push(stream);
            continue;
        }
        while let Some(kind) = stream.integer().await? {
            let length = stream.integer().await?.context("the frame's length")?;
            stream.pass(length, &mut |_| {}).await?;
            told_to_go.fetch_or(kind == GOAWAY, Ordering::Relaxed);
        }
    }
}

struct Reader {
    receive: RecvStream,
    chunk: Bytes,
}

impl Reader {
    async fn fill(&mut self) -> Result<bool> {
        while self.chunk.is_empty() {
            match self.receive.read_chunk(1 << 20, true).await? {
                Some(chunk) => self.chunk = chunk.bytes,
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn octet(&mut self) -> Result<Option<u8>> {
        Ok(if self.fill().await? { Some(self.chunk.split_to(1)[0]) } else { None })
    }

    /// A variable-length integer (RFC 9000 section 16); `None` at the end of the stream.
    async fn integer(&mut self) -> Result<Option<u64>> {
        let Some(first) = self.octet().await? else { return Ok(None) };
        let mut value = u64::from(first & 0x3f);
        for _ in 1..(1 << (first >> 6)) {
            let octet = self.octet().await?.context("the stream ends within an integer")?;
            value = (value << 8) | u64::from(octet);
        }
        Ok(Some(value))
    }

    async fn pass(&mut self, mut left: u64, see: &mut impl FnMut(&[u8])) -> Result<()> {
        while left > 0 {
            ensure!(self.fill().await?, "the stream ends within a frame");
            let here = left.min(self.chunk.len() as u64);
            see(&self.chunk.split_to(usize::try_from(here)?));
            left -= here;
        }
        Ok(())
    }
}

/// In two octets, or in eight.
fn integer(value: u64, into: &mut Vec<u8>) {
    match u16::try_from(value) {
        Ok(short) if short < 1 << 14 => into.extend((short | 1 << 14).to_be_bytes()),
        _ => into.extend((value | 3 << 62).to_be_bytes()),
    }
}

/// Literal names and values, nothing compressed (RFC 9204 section 4.5.6).
fn section(fields: &[Field<'_>]) -> Vec<u8> {
    let mut section = vec![0, 0];
    for (name, value) in fields {
        string(0x20, 3, name.as_bytes(), &mut section);
        string(0, 7, value.as_bytes(), &mut section);
    }
    section
}

fn string(first: u8, bits: u32, octets: &[u8], into: &mut Vec<u8>) {
    let all = (1_usize << bits) - 1;
    if octets.len() < all {
        into.push(first | octets.len() as u8);
    } else {
        into.push(first | all as u8);
        let mut left = octets.len() - all;
        while left >= 128 {
            into.push((left & 0x7f) as u8 | 0x80);
            left >>= 7;
        }
        into.push(left as u8);
    }
    into.extend_from_slice(octets);
}

/// The status, which is the first field of an answer: a line of the static table, or its name from there
/// (RFC 9204 appendix A, lines 24 to 28 and 63 to 71) and three digits.
fn status_of(section: &[u8]) -> Result<u16> {
    const EARLY: [u16; 5] = [103, 200, 304, 404, 503];
    const LATE: [u16; 9] = [100, 204, 206, 302, 400, 403, 421, 425, 500];
    Ok(match section.get(2..).context("a field section")? {
        [0xff, more, ..] if usize::from(*more) < LATE.len() => LATE[usize::from(*more)],
        [line @ 0xd8..=0xdc, ..] => EARLY[usize::from(line - 0xd8)],
        [0x5f, _line, 3, digits @ ..] => std::str::from_utf8(&digits[..3])?.parse()?,
        [0x5f, _line, length, coded @ ..] if length & 0x80 != 0 => digits(coded)?,
        other => bail!("no status: {other:?}"),
    })
}

/// Three digits in Huffman's code (RFC 7541 appendix B): five bits for the first three, six for others.
fn digits(coded: &[u8]) -> Result<u16> {
    let bits = coded.iter().take(4).fold(0_u32, |bits, octet| (bits << 8) | u32::from(*octet));
    let mut bits = bits << (8 * (4 - coded.len().min(4)));
    let mut number = 0;
    for _ in 0..3 {
        let (digit, length) = match (bits >> 27, bits >> 26) {
            (short @ 0..=2, _) => (short, 5),
            (_, long @ 0x19..=0x1f) => (long - 0x19 + 3, 6),
            _ => bail!("no digits: {coded:?}"),
        };
        bits <<= length;
        number = number * 10 + digit;
    }
    Ok(u16::try_from(number)?)
}

/// What `count` clients say first, as datagrams: they speak to a socket of ours, which does not answer.
pub(super) async fn first_words(identity: &Identity, count: usize) -> Result<Vec<Vec<u8>>> {
    let sink = tokio::net::UdpSocket::bind("127.0.0.1:0").await?;
    let endpoint = endpoint(Ipv4Addr::UNSPECIFIED)?;
    let settings = identity.settings(PATIENCE)?;
    let begun: Vec<_> = (0..count)
        .map(|_| {
            endpoint.connect_with(settings.clone(), sink.local_addr()?, HOST).map_err(Into::into)
        })
        .collect::<Result<_>>()?;
    let mut words: Vec<Vec<u8>> = Vec::new();
    let mut ids = std::collections::BTreeSet::new();
    let mut datagram = [0; 2048];
    // A first message may take more than one datagram; each connection has an ID of its own.
    while ids.len() < count {
        let length = tokio::time::timeout(PATIENCE, sink.recv(&mut datagram)).await??;
        let word = datagram[..length].to_vec();
        let id_bytes = usize::from(word[5]);
        ids.insert(word[6..6 + id_bytes].to_vec());
        words.push(word);
    }
    drop(begun);
    endpoint.close(VarInt::from_u32(0), b"");
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_read_in_each_form() {
        for (section, status) in [
            (&[0, 0, 0xd9][..], 200),
            (&[0, 0, 0xff, 4], 400),
            (&[0, 0, 0x5f, 9, 3, b'4', b'3', b'1'], 431),
            // 4: 011010, 0: 00000, 1: 00001.
            (&[0, 0, 0x5f, 9, 0x82, 0b0110_1000, 0b0000_0001], 401),
            // 4: 011010, 2: 00010, 9: 011111, and the padding.
            (&[0, 0, 0x5f, 9, 0x83, 0b0110_1000, 0b0100_1111, 0b1111_1111], 429),
        ] {
            assert_eq!(status_of(section).unwrap(), status, "{section:?}");
        }
    }
}
