"""A Moltis node, written from docs/protocol.md and its test vectors alone.

Read it in this order; each module names the section of the page that it follows:

    errors      what can go wrong, by what the caller does about it
    codec       messages to JSON and back, strictly                   (3, Types)
    messages    every struct that goes over the wire                  (3 and 5)
    noise       the NN handshake and the cipher of each direction     (2)
    channel     frames over a WebSocket                               (1 and 2)
    identity    the node's key, fingerprints, strict verification     (3, Signatures and Pins)
    handshake   who is who, and the gateway's verdict                 (3 and 4)
    journal     what the node remembers of its runs                   (6, Starting)
    spool       output that waits for the gateway                     (6, Output)
    command     from a spec to a child process                        (6, Environment)
    runs        a run from its start to its ending, and all of them   (6)
    telemetry   how this machine is doing                             (7)
    link        one connection after `accepted`                       (5 to 7)
    node        dialling, for ever                                    (4 and 7)
"""

VERSION = "0.1.0"
