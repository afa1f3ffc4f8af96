//! Several keepers behind one link, and keepers that do not do as they should.

use std::time::Duration;

use moltis_node::LinkError;
use moltis_proto::key::Digest;
use moltis_proto::run::{RunState, RunSummary, Totals};
use moltis_proto::{FromKeeper, JournalId, RunRefusal, ToGateway, ToKeeper, ToNode};

use crate::gateway::TestGateway;
use crate::node::{TestNode, config};
use crate::session::{CHUNK, output, run, start};

fn summary(number: u8, journal: u8) -> RunSummary {
    RunSummary {
        run_id: run(number),
        digest: Digest::from_bytes([number; 32]),
        journal_id: JournalId::from_bytes([journal; 16]),
        state: RunState::Running { pid: 1 },
        totals: Totals::default(),
        stdin: 0,
    }
}

fn cancel(number: u8) -> ToKeeper {
    ToKeeper::Cancel {
        run_id: run(number),
        grace_ms: 1,
    }
}

#[tokio::test]
async fn new_runs_go_to_the_newest_keeper_and_old_ones_to_their_own() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::with_keepers(2, config(gateway.url()), |node| node);
    let mut peer = gateway.admit().await;
    let mut newest = node.keeper().await;
    let mut older = node.keeper().await;
    older.list(2, vec![summary(10, 2), summary(11, 2)]).await;
    newest.list(1, vec![summary(20, 1)]).await;
    let ToGateway::Run(FromKeeper::Runs {
        journals,
        runs,
        last,
        ..
    }) = peer.hear().await
    else {
        panic!("no list");
    };
    assert!(last);
    let journal = |number| JournalId::from_bytes([number; 16]);
    assert_eq!(
        journals,
        [journal(1), journal(2)],
        "the one for new runs first"
    );
    assert_eq!(runs.len(), 3);

    for message in [start(1), cancel(20), cancel(10), cancel(99)] {
        peer.say(ToNode::Run(message)).await;
    }
    assert_eq!(newest.hear().await, start(1));
    assert_eq!(newest.hear().await, cancel(20));
    assert_eq!(
        newest.hear().await,
        cancel(99),
        "an unknown run is the newest keeper's matter"
    );
    assert_eq!(older.hear().await, cancel(10));

    older.say(output(10, 0, b"old")).await;
    assert_eq!(peer.hear().await, ToGateway::Run(output(10, 0, b"old")));
    newest.say(output(20, 0, b"new")).await;
    assert_eq!(peer.hear().await, ToGateway::Run(output(20, 0, b"new")));

    for number in [10, 11] {
        let forget = ToKeeper::Forget {
            run_id: run(number),
        };
        peer.say(ToNode::Run(forget.clone())).await;
        assert_eq!(older.hear().await, forget);
    }
    assert_eq!(
        older.try_hear().await,
        None,
        "an older keeper without runs is let go"
    );
    newest.say(output(20, 3, b"er")).await;
    assert_eq!(peer.hear().await, ToGateway::Run(output(20, 3, b"er")));
}

#[tokio::test]
async fn an_older_keeper_without_runs_is_let_go_at_once() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::with_keepers(2, config(gateway.url()), |node| node);
    let mut peer = gateway.admit().await;
    let mut newest = node.keeper().await;
    let mut older = node.keeper().await;
    newest.list(1, Vec::new()).await;
    older.list(2, Vec::new()).await;
    assert!(matches!(peer.hear().await, ToGateway::Run(_)));
    assert_eq!(older.try_hear().await, None);
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(newest.hear().await, start(1));
}

#[tokio::test]
async fn a_keeper_that_goes_makes_the_link_list_anew() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    drop(keeper);
    peer.closed().await;
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Keeper { .. }), "{error:?}");
    let (mut peer, _keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    assert!(matches!(
        peer.hear().await,
        ToGateway::Run(FromKeeper::Runs { .. })
    ));
}

#[tokio::test]
async fn a_keeper_that_speaks_before_its_list_is_not_listened_to() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (_peer, mut keeper) = tokio::join!(gateway.admit(), node.keeper());
    keeper.hear().await;
    keeper.say(output(1, 0, b"early")).await;
    let (error, _) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::Keeper { .. }), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_never_lists_is_given_up() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (_peer, _keeper) = tokio::join!(gateway.admit(), node.keeper());
    let (error, _) = node.disconnected().await;
    assert!(
        matches!(
            &*error,
            LinkError::Keeper {
                problem: "says nothing",
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_gateway_that_does_not_read_leaves_the_keepers_output_with_the_keeper() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let mut taken = 0u64;
    // The sockets between take some megabytes; then the link takes nothing more.
    loop {
        let say = keeper.say(output(1, taken * 60_000, CHUNK));
        if tokio::time::timeout(Duration::from_secs(2), say)
            .await
            .is_err()
        {
            break;
        }
        taken += 1;
        assert!(
            taken < 1000,
            "the link took 60 MB for a gateway that reads nothing"
        );
    }
    // Reading does not wait for writing: what the gateway says still arrives.
    peer.say(ToNode::Run(start(2))).await;
    assert_eq!(keeper.hear().await, start(2));
}

#[tokio::test]
async fn a_keeper_that_takes_nothing_stops_the_gateway_and_not_the_memory() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    let stdin = |offset: u64| ToKeeper::Stdin {
        run_id: run(1),
        offset,
        bytes: CHUNK.into(),
        eof: false,
    };
    let mut sent = 0u64;
    loop {
        let message = ToNode::Run(stdin(sent * 60_000));
        let say = peer.try_send(&message);
        if tokio::time::timeout(Duration::from_secs(2), say)
            .await
            .is_err()
        {
            break;
        }
        sent += 1;
        assert!(
            sent < 1000,
            "the link took 60 MB for a keeper that reads nothing"
        );
    }
    // It catches up, and nothing was lost or turned round.
    for number in 0..sent {
        assert_eq!(keeper.hear().await, stdin(number * 60_000));
    }
}

#[tokio::test]
async fn a_start_that_meets_a_leaving_keeper_meets_the_next_one_at_once() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, mut leaving) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(leaving.hear().await, start(1));
    let refused = FromKeeper::Refused {
        run_id: run(1),
        code: RunRefusal::Leaving,
    };
    leaving.say(refused.clone()).await;
    assert_eq!(peer.hear().await, ToGateway::Run(refused));
    assert!(matches!(peer.hear().await, ToGateway::Goodbye { .. }));
    peer.closed().await;
    let (error, retry_in) = node.disconnected().await;
    assert!(matches!(&*error, LinkError::KeeperLeaves), "{error:?}");
    assert!(retry_in.is_zero());
    let (mut peer, mut next) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    peer.say(ToNode::Run(start(1))).await;
    assert_eq!(next.hear().await, start(1));
    // One that only ever finds keepers that leave does not dial all the time.
    next.say(FromKeeper::Refused {
        run_id: run(1),
        code: RunRefusal::Leaving,
    })
    .await;
    let (_, retry_in) = node.disconnected().await;
    assert!(!retry_in.is_zero());
}

#[tokio::test]
async fn another_refusal_ends_no_connection() {
    let gateway = TestGateway::bind().await;
    let mut node = TestNode::run(config(gateway.url()));
    let (mut peer, mut keeper) = tokio::join!(gateway.admit(), node.idle_keeper());
    peer.hear().await;
    for number in 1..3 {
        let refused = FromKeeper::Refused {
            run_id: run(number),
            code: RunRefusal::Policy,
        };
        keeper.say(refused.clone()).await;
        assert_eq!(peer.hear().await, ToGateway::Run(refused));
    }
}
