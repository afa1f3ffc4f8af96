//! A small client of OpenSSH's multiplexing socket (`PROTOCOL.mux` in OpenSSH's source).
//!
//! It does what `ssh -S <socket> host command` does after its start: it passes three descriptors to
//! the master and waits for the exit code. Without the `ssh` process this is the quickest way to run
//! a command over SSH, so it is what we measure ourselves against.

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context as _, bail};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::pipe::{PipeFlags, pipe_with};

const HELLO: u32 = 0x0000_0001;
const NEW_SESSION: u32 = 0x1000_0002;
const PERMISSION_DENIED: u32 = 0x8000_0002;
const FAILURE: u32 = 0x8000_0003;
const EXIT_MESSAGE: u32 = 0x8000_0004;
const SESSION_OPENED: u32 = 0x8000_0006;
const VERSION: u32 = 4;

/// No escape character.
const NO_ESCAPE: u32 = 0xffff_ffff;

/// A longer message than this is not one of the master's.
const MESSAGE_MAX: usize = 256 * 1024;

/// Runs a command through a master and gives its output to `read`; returns its exit code.
///
/// # Errors
///
/// When the master refuses, or speaks otherwise than described.
pub(super) fn run(
    socket: &Path,
    command: &str,
    read: impl FnOnce(File) -> io::Result<()>,
) -> anyhow::Result<u32> {
    let connect = || format!("connecting to the master at {}", socket.display());
    let mut master = UnixStream::connect(socket).with_context(connect)?;
    send(&mut master, Message::new(HELLO).number(VERSION))?;
    let mut hello = receive(&mut master)?;
    if (hello.number()?, hello.number()?) != (HELLO, VERSION) {
        bail!("the master did not say hello in version {VERSION}");
    }

    let request = Message::new(NEW_SESSION)
        .number(0) // request id: there is one
        .text("") // reserved
        .number(0) // no terminal
        .number(0) // no X11
        .number(0) // no agent
        .number(0) // no subsystem
        .number(NO_ESCAPE)
        .text("") // no TERM
        .text(command);
    send(&mut master, request)?;
    let (out, out_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let (errors, errors_theirs) = pipe_with(PipeFlags::CLOEXEC)?;
    let null = OwnedFd::from(File::open("/dev/null")?);
    for theirs in [&null, &out_theirs, &errors_theirs] {
        pass(&master, theirs.as_fd())?;
    }
    drop((null, out_theirs, errors_theirs));

    let mut opened = receive(&mut master)?;
    match opened.number()? {
        SESSION_OPENED => {}
        PERMISSION_DENIED | FAILURE => {
            opened.number()?; // our request's id
            bail!("the master refuses: {}", opened.text()?);
        }
        other => bail!("the master answers with message {other:#x}"),
    }
    read(File::from(out)).context("reading the command's output")?;
    let mut said = String::new();
    File::from(errors).read_to_string(&mut said)?;
    loop {
        let mut message = receive(&mut master)?;
        if message.number()? == EXIT_MESSAGE {
            message.number()?; // the session's id
            return message.number();
        }
    }
}

/// Passes a descriptor, as the master expects it: one message, one byte.
fn pass(master: &UnixStream, descriptor: BorrowedFd<'_>) -> anyhow::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut rights = SendAncillaryBuffer::new(&mut space);
    let descriptors = [descriptor];
    if !rights.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        bail!("a descriptor does not fit its own message");
    }
    sendmsg(
        master,
        &[IoSlice::new(&[0])],
        &mut rights,
        SendFlags::empty(),
    )
    .context("passing a descriptor to the master")?;
    Ok(())
}

/// A message in the making: numbers are 32 bits, texts carry their length.
#[derive(Debug)]
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u32) -> Self {
        Self(Vec::new()).number(kind)
    }

    fn number(mut self, number: u32) -> Self {
        self.0.extend(number.to_be_bytes());
        self
    }

    fn text(self, text: &str) -> Self {
        let length = u32::try_from(text.len()).expect("a command is short");
        let mut longer = self.number(length);
        longer.0.extend(text.as_bytes());
        longer
    }
}

/// A message as it came.
#[derive(Debug)]
struct Answer {
    bytes: Vec<u8>,
    read: usize,
}

impl Answer {
    fn number(&mut self) -> anyhow::Result<u32> {
        let end = self.read + 4;
        let bytes = self
            .bytes
            .get(self.read..end)
            .context("a message of the master is too short")?;
        self.read = end;
        Ok(u32::from_be_bytes(bytes.try_into()?))
    }

    fn text(&mut self) -> anyhow::Result<String> {
        let end = self.number()? as usize + self.read;
        let bytes = self
            .bytes
            .get(self.read..end)
            .context("a message of the master is too short")?;
        self.read = end;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }
}

fn send(master: &mut UnixStream, Message(message): Message) -> anyhow::Result<()> {
    let length = u32::try_from(message.len())?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend(message);
    master.write_all(&framed).context("writing to the master")
}

fn receive(master: &mut UnixStream) -> anyhow::Result<Answer> {
    let mut length = [0; 4];
    master
        .read_exact(&mut length)
        .context("the master has left")?;
    let length = u32::from_be_bytes(length) as usize;
    if length > MESSAGE_MAX {
        bail!("the master announces a message of {length} bytes");
    }
    let mut bytes = vec![0; length];
    master
        .read_exact(&mut bytes)
        .context("the master has left")?;
    Ok(Answer { bytes, read: 0 })
}
