//! A whole node on one page, on `moltis-proto` and `moltis-identity`.
//!
//! ```text
//! moltis node pairing enable
//! cargo run -p moltis-identity --example own_node -- ws://127.0.0.1:9090/ws own_node
//! ```
//!
//! It joins a gateway, shows the connection code, waits to be approved, and runs what it is asked.
//! What a node has to think about, the machines of `moltis_proto::node` think: `Link` one connection,
//! `Runs` all that is between a command and the gateway, `Backoff` when to dial again. They touch
//! nothing; this page does what they say: from the top, the life of a node, one connection, the road
//! that it takes, and the commands.
//!
//! `cargo xtask conformance` passes it. It leaves out what `moltis-node` is for: terminals, an owner's
//! policy, figures of its machine, much output, and commands that outlive the node's process.
#![expect(clippy::print_stdout, reason = "an example talks to its user")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::{fd::OwnedFd, unix::process::CommandExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use moltis_identity::noise::{self, Channel, Initiator};
use moltis_identity::{Fingerprint, NodeIdentity, StrictVerifier, random};
use moltis_proto::handshake::node::{NodeClaim, Pin};
use moltis_proto::handshake::{Intent, Introduction};
use moltis_proto::limits::{BACKOFF_MIN, FRAME_BYTES_MAX, HANDSHAKE_TIME_MAX, SILENCE_MAX};
use moltis_proto::liveness::Moment;
use moltis_proto::node::{Action, Backoff, Record, Runs, RunsConfig, ToChild};
use moltis_proto::node::{Caller, Link, LinkEnd, LinkEvent};
use moltis_proto::run::{ExitStatus, Reason, RunSpec, StdinMode, Stream};
use moltis_proto::subprotocol::{Negotiated, Subprotocol};
use moltis_proto::{BootId, InstanceId, JournalId, NodeId, NodeName, Nonce, RunId, RunRefusal};
use moltis_proto::{telemetry::Sample, version::LedgerRange};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::time::{sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::{RETRY_AFTER, SEC_WEBSOCKET_PROTOCOL};
use tokio_tungstenite::tungstenite::{self, Message, protocol::WebSocketConfig};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async_with_config};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Result<T = (), E = Failure> = std::result::Result<T, E>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result {
    let mut args = std::env::args().skip(1);
    let (Some(url), Some(dir)) = (args.next(), args.next()) else {
        return Err("usage: own_node <ws://gateway:9090/ws> <directory>".into());
    };
    node(&url, Path::new(&dir)).await
}

/// The life of a node: it connects again and again, until dialling is of no use any more.
pub(crate) async fn node(url: &str, dir: &Path) -> Result {
    let mut node = Node::open(dir)?;
    let mut commands = Commands::open(&dir.join("journal"), node.claim.boot_id)?;
    loop {
        let Err(error) = node.visit(url, &mut commands).await;
        // Commands go on meanwhile; what they write waits.
        commands.runs.handle_detached(now());
        let end = error.downcast_ref::<LinkEnd>();
        if end.is_some_and(LinkEnd::needs_person) {
            return Err(error);
        }
        println!("No connection    {error}");
        let wait = if let Some(wait) = end.and_then(LinkEnd::back_in) {
            node.backoff.handle_sent_away(now());
            wait.max(BACKOFF_MIN)
        } else {
            let jitter = u32::from_ne_bytes(random::bytes());
            node.backoff.handle_lost(jitter, now())
        };
        commands.during(sleep(wait)).await;
    }
}

/// What a node is, from one connection to the next.
struct Node {
    identity: NodeIdentity,
    claim: NodeClaim,
    pin: Pin,
    /// Where the pin is from the first acceptance on. Until then the node asks to pair.
    pin_file: PathBuf,
    backoff: Backoff,
}

impl Node {
    fn open(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let name = || NodeId::new("own-node").expect("the name follows the rules");
        let identity = NodeIdentity::load_or_create(&dir.join("node_key"), name)?;
        println!("This node's key  {}", identity.fingerprint());
        let pin_file = dir.join("gateway_key");
        let (intent, pin) = match fs::read_to_string(&pin_file) {
            Ok(text) => {
                let kept: Fingerprint = text.trim().parse()?;
                (Intent::Connect, Pin::Fingerprint(*kept.as_digest()))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (Intent::Pair, Pin::FirstUse),
            Err(error) => return Err(error.into()),
        };
        let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let boot_id = boot_id.trim().replace('-', "").parse();
        let claim = NodeClaim {
            device_id: identity.device_id,
            instance_id: InstanceId::from_bytes(random::bytes()),
            boot_id: boot_id.unwrap_or_else(|_| BootId::from_bytes(random::bytes())),
            intent,
            ledgers: LedgerRange::CURRENT,
        };
        Ok(Self {
            identity,
            claim,
            pin,
            pin_file,
            backoff: Backoff::new(),
        })
    }

    /// One connection: tells the link what comes, and does what it says, until one of the two goes.
    async fn visit(&mut self, url: &str, commands: &mut Commands) -> Result<Infallible> {
        let dialled = timeout(HANDSHAKE_TIME_MAX, Road::dial(url));
        let mut road = commands.during(dialled).await??;
        let identity = self.identity.clone();
        let name = NodeName::new("Own node")?;
        let caller = Caller {
            claim: self.claim,
            pin: self.pin,
            introduction: Introduction::new(identity.node_id.clone(), name),
            signer: &identity.secret,
            verifier: &StrictVerifier,
            nonce: Nonce::from_bytes(random::bytes()),
        };
        let mut link = Link::new(road.channel.binding, caller, moment());
        loop {
            while let Some(event) = link.poll_event() {
                match event {
                    LinkEvent::Known(key) => {
                        println!("Gateway key      {}", Fingerprint::of(&key));
                        self.pin = Pin::Key(key);
                    }
                    LinkEvent::Pending(code) => println!("Connection code  {code}"),
                    LinkEvent::Accepted => {
                        println!("Connected");
                        self.backoff.handle_connected(now());
                        self.keep_pin()?;
                    }
                    LinkEvent::SampleDue => link.send_sample(sample(), unix_ms())?,
                }
            }
            commands.act();
            while let Some(plaintext) = link.poll_transmit(&mut commands.runs, now())? {
                road.send(&plaintext).await?;
                commands.act();
            }
            let handled = tokio::select! {
                biased;
                plaintext = road.receive() => {
                    link.handle_plaintext(&plaintext?, &mut commands.runs, moment())
                }
                () = sleep_until(link.poll_timeout().into()) => link.handle_timeout(moment()),
                () = commands.wait() => Ok(()),
            };
            if let Err(end) = handled {
                while let Some(last_word) = link.poll_transmit(&mut commands.runs, now())? {
                    road.send(&last_word).await.ok(); // it may have gone itself
                }
                return Err(end.into());
            }
        }
    }

    /// Writes the pin down, once; its file is there whole or not at all.
    fn keep_pin(&mut self) -> Result {
        if let (Pin::Key(key), Intent::Pair) = (&self.pin, self.claim.intent) {
            let new = self.pin_file.with_extension("new");
            fs::write(&new, format!("{}\n", Fingerprint::of(key)))?;
            fs::rename(new, &self.pin_file)?;
            self.claim.intent = Intent::Connect;
        }
        Ok(())
    }
}

/// The road: plaintexts in a sealed channel in a WebSocket.
struct Road {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    channel: Channel,
}

impl Road {
    async fn dial(url: &str) -> Result<Self> {
        let offers = noise::preferred_offers();
        let offered: Vec<_> = offers.into_iter().map(Subprotocol::name).collect();
        let offered = offered.join(",");
        let mut request = url.into_client_request()?;
        let headers = request.headers_mut();
        headers.insert(SEC_WEBSOCKET_PROTOCOL, offered.parse()?);
        let config = WebSocketConfig::default().max_frame_size(Some(FRAME_BYTES_MAX));
        let config = config.max_message_size(Some(FRAME_BYTES_MAX));
        let connected = Box::pin(connect_async_with_config(request, Some(config), true)).await;
        let (mut socket, response) = connected.map_err(|error| match error {
            tungstenite::Error::Http(answer) if answer.status() == 503 => {
                let after = answer.headers().get(RETRY_AFTER);
                let after = after.and_then(|after| after.to_str().ok()?.parse().ok());
                Failure::from(LinkEnd::Busy(Duration::from_secs(after.unwrap_or(5))))
            }
            error => error.into(),
        })?;
        let chosen = response.headers().get(SEC_WEBSOCKET_PROTOCOL);
        let chosen = chosen.and_then(|name| Subprotocol::from_name(name.to_str().ok()?));
        let chosen = chosen.ok_or("this is not a gateway")?;

        let (initiator, message_1) = Initiator::new(&Negotiated { offered, chosen })?;
        socket.send(Message::Binary(message_1.into())).await?;
        let channel = initiator.finish(&next(&mut socket).await?)?;
        Ok(Self { socket, channel })
    }

    async fn send(&mut self, plaintext: &[u8]) -> Result {
        let mut frame = Vec::new();
        self.channel.sealer.seal(plaintext, &mut frame)?;
        let sent = self.socket.send(Message::Binary(frame.into()));
        Ok(timeout(SILENCE_MAX, sent).await??)
    }

    /// Cancel safe: what has come is returned, or still in the socket.
    async fn receive(&mut self) -> Result<Vec<u8>> {
        let frame = next(&mut self.socket).await?;
        let mut plaintext = Vec::new();
        self.channel.opener.open(&frame, &mut plaintext)?;
        Ok(plaintext)
    }
}

async fn next(socket: &mut WebSocketStream<MaybeTlsStream<TcpStream>>) -> Result<Bytes> {
    loop {
        match socket.next().await.ok_or("the gateway has gone")?? {
            Message::Binary(frame) => return Ok(frame),
            // Answered by the library, and no sign of life.
            Message::Ping(_) | Message::Pong(_) => {}
            other => return Err(format!("the gateway sent {other:?}").into()),
        }
    }
}

/// The commands: `Runs` says what to do with them, and is told what they do.
struct Commands {
    runs: Runs,
    journal: File,
    children: HashMap<RunId, Running>,
    told: Receiver<Told>,
    tell: Sender<Told>,
}

/// What happened to a child, as the call that tells it.
type Told = Box<dyn FnOnce(&mut Runs) + Send>;

/// A child, and the threads that have its pipes.
struct Running {
    child: Child,
    reads: [SyncSender<usize>; 2],
    writes: Option<SyncSender<Bytes>>,
}

impl Commands {
    /// Reads the journal: its own id, then a record in each line.
    fn open(path: &Path, boot_id: BootId) -> Result<Self> {
        if !path.exists() {
            let id = JournalId::from_bytes(random::bytes());
            fs::write(path, format!("{id}\n"))?;
        }
        let text = fs::read_to_string(path)?;
        let mut lines = text.lines();
        let config = RunsConfig {
            boot_id,
            journal_id: lines.next().unwrap_or_default().parse()?,
            runs_max: 250, // four threads each
            memory_bytes: 4 * 1024 * 1024,
            env_allow: Vec::new(),
        };
        // A line that is none was being written when the process died: nothing came of it.
        let records = lines.filter_map(|line| serde_json::from_str(line).ok());
        let (tell, told) = mpsc::channel(64); // beyond it the threads wait
        Ok(Self {
            runs: Runs::new(config, records),
            journal: File::options().append(true).open(path)?,
            children: HashMap::new(),
            told,
            tell,
        })
    }

    /// Waits for something else, while the commands go on.
    async fn during<T>(&mut self, other: impl Future<Output = T>) -> T {
        let mut other = std::pin::pin!(other);
        loop {
            self.act();
            tokio::select! {
                done = &mut other => return done,
                () = self.wait() => {}
            }
        }
    }

    /// Waits until something happens to a command. Cancel safe.
    async fn wait(&mut self) {
        let an_hour = now() + Duration::from_hours(1);
        let at = self.runs.poll_timeout().unwrap_or(an_hour);
        tokio::select! {
            Some(told) = self.told.recv() => told(&mut self.runs),
            () = sleep_until(at.into()) => self.runs.handle_timeout(now()),
        }
    }

    /// Does whatever is to be done now.
    fn act(&mut self) {
        while let Some(action) = self.runs.poll_action(now()) {
            match action {
                Action::Remember(record) => {
                    // Unwritten, the run is listed again by the node's next process, and forgotten.
                    self.write_down(&record).ok();
                }
                Action::Start(run_id, record, spec) => match self.write_down(&record) {
                    Ok(()) => self.start(run_id, &spec),
                    Err(_) => self.runs.refuse(run_id, RunRefusal::JournalFailed),
                },
                Action::Child(run_id, ToChild::LetGo) => {
                    if let Some(mut running) = self.children.remove(&run_id) {
                        running.child.wait().ok(); // it has ended
                    }
                }
                Action::Child(run_id, what) => {
                    if let Some(running) = self.children.get_mut(&run_id) {
                        running.act(what);
                    }
                }
            }
        }
    }

    fn write_down(&mut self, record: &Record) -> Result {
        let line = serde_json::to_string(record)? + "\n";
        Ok(self.journal.write_all(line.as_bytes())?)
    }

    fn start(&mut self, run_id: RunId, spec: &RunSpec) {
        let mut child = match spawn(spec) {
            Ok(child) => child,
            Err((reason, why)) => return self.runs.handle_not_started(run_id, reason, why),
        };
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut pipes = [stdout.map(OwnedFd::from), stderr.map(OwnedFd::from)];
        let reads = Stream::BOTH.map(|stream| {
            let pipe = pipes[stream.index()].take();
            let mut pipe = File::from(pipe.expect("a command is spawned with both"));
            self.worker(move |bytes_max| {
                let mut bytes = vec![0; bytes_max];
                let length = pipe.read(&mut bytes).unwrap_or(0);
                bytes.truncate(length);
                Box::new(move |runs| runs.handle_read(run_id, stream, bytes.into(), now()))
            })
        });
        let writes = child.stdin.take().map(|mut pipe| {
            self.worker(move |bytes: Bytes| {
                // A piece at a time, so that the gateway hears how far a slow command has come.
                let piece = bytes.len().min(4096);
                match pipe.write(&bytes[..piece]) {
                    Ok(length) => Box::new(move |runs| runs.handle_written(run_id, length)),
                    Err(_) => Box::new(move |runs| runs.handle_stdin_closed(run_id)),
                }
            })
        });
        let pid = Pid::from_child(&child);
        let ended = self.worker(move |()| {
            // It stays a zombie, and keeps the number of its group, until it is let go.
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            let ended = waitid(WaitId::Pid(pid), options).ok().flatten();
            let status = ended.and_then(|ended| {
                let code = ended.exit_status().map(ExitStatus::Code);
                code.or(ended.terminating_signal().map(ExitStatus::Signal))
            });
            Box::new(move |runs| runs.handle_exited(run_id, status, now()))
        });
        ended.send(()).ok(); // the only thing that it is asked for
        self.runs.handle_started(run_id, child.id(), now());
        let running = Running {
            child,
            reads,
            writes,
        };
        self.children.insert(run_id, running);
    }

    /// Starts a thread that does one thing after the other, and tells what came of each.
    fn worker<T: Send + 'static>(
        &self,
        mut work: impl FnMut(T) -> Told + Send + 'static,
    ) -> SyncSender<T> {
        let (ask, asked) = sync_channel(1); // one thing at a time is asked for
        let tell = self.tell.clone();
        std::thread::spawn(move || {
            for what in asked {
                tell.blocking_send(work(what)).ok(); // the node ends
            }
        });
        ask
    }
}

impl Running {
    fn act(&mut self, what: ToChild) {
        match what {
            ToChild::Read { stream, bytes_max } => {
                let reads = &self.reads[stream.index()];
                reads.send(bytes_max).ok(); // at its end it is not asked again
            }
            ToChild::Write(bytes) => {
                if let Some(writes) = &self.writes {
                    writes.send(bytes).ok(); // it has said that it takes no more
                }
            }
            ToChild::CloseStdin => self.writes = None,
            ToChild::Signal(number) => {
                if let Some(signal) = Signal::from_named_raw(number) {
                    let group = Pid::from_child(&self.child);
                    kill_process_group(group, signal).ok(); // nobody is left in it
                }
            }
            ToChild::LetGo => {}
        }
    }
}

impl Drop for Commands {
    /// No command outlives its node, as far as the node can help it.
    fn drop(&mut self) {
        for running in self.children.values_mut() {
            running.act(ToChild::Signal(9));
        }
    }
}

/// Spawns a command in a process group of its own, or says why it cannot.
fn spawn(spec: &RunSpec) -> Result<Child, (Option<Reason>, String)> {
    let cwd = spec.cwd.as_deref().unwrap_or("/");
    if !Path::new(cwd).is_dir() {
        let why = format!("`{cwd}` is not a directory");
        return Err((Some(Reason::WorkingDir), why));
    }
    let base = ["HOME", "USER", "LOGNAME", "SHELL", "TMPDIR", "PATH"];
    let base = base
        .iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let words = spec.words();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(cwd).process_group(0);
    command.env_clear().envs(base).envs(&spec.env);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.stdin(match spec.stdin {
        StdinMode::Empty => Stdio::null(),
        StdinMode::Open => Stdio::piped(),
    });
    command.spawn().map_err(|error| {
        let reason = match error.kind() {
            ErrorKind::NotFound => Some(Reason::NotFound),
            ErrorKind::PermissionDenied => Some(Reason::NotExecutable),
            _ => None,
        };
        (reason, error.to_string())
    })
}

fn sample() -> Sample {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    Sample {
        cpu_count: cpus.try_into().unwrap_or(u32::MAX),
        ..Sample::default()
    }
}

/// Now, by the clock of the runtime.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Now, by a clock that stops while the machine sleeps and by one that does not. Somebody who sets
/// the time of day costs a connection at worst.
fn moment() -> Moment {
    Moment {
        monotonic: now(),
        boottime: Duration::from_millis(unix_ms()),
    }
}

fn unix_ms() -> u64 {
    let since = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}
