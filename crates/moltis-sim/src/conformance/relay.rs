//! A cable between a node and a gateway, cut where a row wants it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A cable; it ends with this value.
#[derive(Debug)]
pub(super) struct Relay {
    cable: Arc<Cable>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Cable {
    to: Mutex<SocketAddr>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Bytes that pass from the node before the cable is cut, once for each cut to come.
    cuts: VecDeque<u64>,
    /// Ends the connections that live.
    cut: CancellationToken,
    connections: usize,
}

impl Relay {
    /// Passes what comes to the listener on.
    pub(super) fn start(listener: TcpListener, to: SocketAddr) -> Self {
        let cable = Arc::new(Cable {
            to: Mutex::new(to),
            state: Mutex::new(State {
                cuts: VecDeque::new(),
                cut: CancellationToken::new(),
                connections: 0,
            }),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&cable).accept(listener));
        Self {
            cable,
            _tasks: tasks,
        }
    }

    /// Passes new connections on to another address from now on.
    pub(super) fn lead_to(&self, to: SocketAddr) {
        *self.cable.to.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    /// Cuts when so many more bytes have come from the node, then after so many more, and so on.
    pub(super) fn cut_after(&self, bytes: &[u64]) {
        self.cable.state().cuts.extend(bytes);
    }

    /// Returns how many of these cuts are still to come.
    pub(super) fn cuts_to_come(&self) -> usize {
        self.cable.state().cuts.len()
    }

    /// Cuts every connection now.
    pub(super) fn cut(&self) {
        self.cable.state().cut();
    }

    /// Returns how many connections went through since the start.
    pub(super) fn connections(&self) -> usize {
        self.cable.state().connections
    }
}

impl State {
    fn cut(&mut self) {
        std::mem::replace(&mut self.cut, CancellationToken::new()).cancel();
    }
}

impl Cable {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((near, _)) = listener.accept().await {
            while connections.try_join_next().is_some() {}
            let to = *self.to.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody there: the node sees its connection close.
            if let Ok(far) = TcpStream::connect(to).await {
                connections.spawn(Arc::clone(&self).join(near, far));
            }
        }
    }

    async fn join(self: Arc<Self>, near: TcpStream, far: TcpStream) {
        near.set_nodelay(true).ok(); // slower, no worse
        far.set_nodelay(true).ok();
        let cut = {
            let mut state = self.state();
            state.connections += 1;
            state.cut.clone()
        };
        let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
        tokio::select! {
            () = cut.cancelled() => {}
            () = self.up(near_in, far_out) => {}
            () = down(far_in, near_out) => {}
        }
    }

    /// From the node to the gateway, counted.
    async fn up(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            let Ok(read @ 1..) = from.read(&mut buffer).await else {
                return;
            };
            let (passes, ends) = self.count(read);
            if to.write_all(&buffer[..passes]).await.is_err() {
                return;
            }
            if ends {
                to.flush().await.ok(); // it is cut in any case
                self.cut_now();
                return;
            }
        }
    }

    /// Returns how many of these bytes pass, and whether the cable is cut behind them.
    fn count(&self, bytes: usize) -> (usize, bool) {
        let mut state = self.state();
        let Some(left) = state.cuts.front_mut() else {
            return (bytes, false);
        };
        let passes = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes);
        *left -= passes as u64;
        let is_cut = *left == 0;
        if is_cut {
            state.cuts.pop_front();
        }
        (passes, is_cut)
    }

    fn cut_now(&self) {
        self.state().cut();
    }
}

async fn down(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    tokio::io::copy(&mut from, &mut to).await.ok(); // either end has gone
}
