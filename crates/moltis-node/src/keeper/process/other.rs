//! The same where only POSIX holds: no descriptors for processes, no subreaper, no way to find a
//! child that has left its process group. The ending of a run that was ended says so.

use rustix::process::Pid;

/// The mark of one run. There is none here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::keeper) struct Mark;

impl Mark {
    /// Makes no mark: nothing would carry it.
    pub(in crate::keeper) fn new(_number: u64) -> Option<Self> {
        None
    }
}

/// Runs `spawn`.
pub(in crate::keeper) fn spawn_marked<T>(_mark: Option<Mark>, spawn: impl FnOnce() -> T) -> T {
    spawn()
}

/// Waits for the end of one child, without reaping it.
#[derive(Debug)]
pub(in crate::keeper) struct Exit {
    pid: Pid,
}

impl Exit {
    /// Watches a child that was not reaped.
    pub(in crate::keeper) fn of(pid: Pid) -> Self {
        Self { pid }
    }

    /// Returns when the child has ended.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(in crate::keeper) async fn ended(&self) {
        super::ended_by_looking(self.pid).await;
    }
}

/// Returns `false`: orphans go to the first process of the system.
pub(in crate::keeper) fn adopt_orphans() -> bool {
    false
}

/// Finds nobody, and says that it does not see all.
pub(in crate::keeper) fn escaped(
    _leader: Option<Pid>,
    _mark: Option<Mark>,
    _adopted: Option<&[Pid]>,
) -> (Vec<Pid>, bool) {
    (Vec::new(), false)
}

/// Finds nobody, and says so.
pub(in crate::keeper) fn end_marked(_marks: &[Mark], _journal: &str) -> bool {
    false
}

/// Returns `None`: nobody tells who our children are.
pub(in crate::keeper) fn orphans(_is_ours: impl Fn(Pid) -> bool) -> Option<Vec<Pid>> {
    None
}
