//! Connections to the database: the writer's own, and those that read.
//!
//! Every statement goes through a [`Connection`], which waits for SQLite's thread as the [`System`]
//! says. In a simulation there is one reader, and who reads holds it.

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::pool::PoolConnection;
use sqlx::sqlite::{
    SqliteConnectOptions, SqlitePool, SqlitePoolOptions, SqliteQueryResult, SqliteRow,
    SqliteStatement, SqliteTypeInfo,
};
use sqlx::{Either, Execute, Executor, SqlStr, Sqlite, SqliteConnection};

use crate::system::System;

/// Connections that read.
const READERS_MAX: u32 = 4;

/// A connection, its owner's or lent to who reads.
#[derive(Debug)]
pub(super) struct Connection {
    whose: Whose,
    system: System,
}

#[derive(Debug)]
enum Whose {
    Owned(SqliteConnection),
    Pooled(PoolConnection<Sqlite>),
    #[cfg(feature = "simulation")]
    Lent(one::Lent),
}

impl Connection {
    /// Takes over a connection.
    pub(super) fn new(connection: SqliteConnection, system: System) -> Self {
        Self {
            whose: Whose::Owned(connection),
            system,
        }
    }

    /// Closes it. A lent one goes back.
    pub(super) async fn close(self) -> Result<(), sqlx::Error> {
        match self.whose {
            Whose::Owned(connection) => {
                let close = sqlx::Connection::close(connection);
                self.system.sqlite(close).await
            }
            Whose::Pooled(_) => Ok(()),
            #[cfg(feature = "simulation")]
            Whose::Lent(_) => Ok(()),
        }
    }

    fn inner(&mut self) -> (&mut SqliteConnection, &System) {
        let connection = match &mut self.whose {
            Whose::Owned(connection) => connection,
            Whose::Pooled(connection) => connection,
            #[cfg(feature = "simulation")]
            Whose::Lent(connection) => connection,
        };
        (connection, &self.system)
    }
}

impl<'c> Executor<'c> for &'c mut Connection {
    type Database = Sqlite;

    fn fetch_many<'e, 'q, E>(
        self,
        query: E,
    ) -> BoxStream<'e, Result<Either<SqliteQueryResult, SqliteRow>, sqlx::Error>>
    where
        'c: 'e,
        E: Execute<'q, Sqlite> + 'q,
        'q: 'e,
    {
        let (connection, system) = self.inner();
        system.answers(connection.fetch_many(query))
    }

    fn fetch_optional<'e, 'q, E>(
        self,
        query: E,
    ) -> BoxFuture<'e, Result<Option<SqliteRow>, sqlx::Error>>
    where
        'c: 'e,
        E: Execute<'q, Sqlite> + 'q,
        'q: 'e,
    {
        let (connection, system) = self.inner();
        system.answer(connection.fetch_optional(query))
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [SqliteTypeInfo],
    ) -> BoxFuture<'e, Result<SqliteStatement, sqlx::Error>>
    where
        'c: 'e,
    {
        let (connection, system) = self.inner();
        system.answer(connection.prepare_with(sql, parameters))
    }
}

/// The connections that read.
#[derive(Debug)]
pub(super) struct Readers {
    source: Source,
    system: System,
}

#[derive(Debug)]
enum Source {
    Pool(SqlitePool),
    #[cfg(feature = "simulation")]
    One(one::One),
}

impl Readers {
    /// Opens the first of them.
    pub(super) async fn open(
        options: SqliteConnectOptions,
        system: System,
    ) -> Result<Self, sqlx::Error> {
        #[cfg(feature = "simulation")]
        if system.is_simulated() {
            let source = Source::One(one::One::open(options).await?);
            return Ok(Self { source, system });
        }
        let pool = SqlitePoolOptions::new()
            .max_connections(READERS_MAX)
            .connect_with(options);
        let source = Source::Pool(pool.await?);
        Ok(Self { source, system })
    }

    /// Lends one, as soon as there is one.
    pub(super) async fn lend(&self) -> Result<Connection, sqlx::Error> {
        let whose = match &self.source {
            Source::Pool(pool) => Whose::Pooled(pool.acquire().await?),
            #[cfg(feature = "simulation")]
            Source::One(one) => Whose::Lent(one.lend().await?),
        };
        Ok(Connection {
            whose,
            system: self.system.clone(),
        })
    }

    /// Closes all of them.
    pub(super) async fn close(&self) {
        match &self.source {
            Source::Pool(pool) => pool.close().await,
            #[cfg(feature = "simulation")]
            Source::One(one) => one.close(&self.system).await,
        }
    }
}

/// One connection instead of a pool, whose tasks ask SQLite's threads while others go on.
#[cfg(feature = "simulation")]
mod one {
    use std::sync::Arc;

    use sqlx::sqlite::SqliteConnectOptions;
    use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection};
    use tokio::sync::{Mutex, OwnedMappedMutexGuard, OwnedMutexGuard};

    use crate::system::System;

    pub(super) type Lent = OwnedMappedMutexGuard<Option<SqliteConnection>, SqliteConnection>;

    #[derive(Debug)]
    pub(super) struct One(Arc<Mutex<Option<SqliteConnection>>>);

    impl One {
        pub(super) async fn open(options: SqliteConnectOptions) -> Result<Self, sqlx::Error> {
            let connection = options.connect().await?;
            Ok(Self(Arc::new(Mutex::new(Some(connection)))))
        }

        pub(super) async fn lend(&self) -> Result<Lent, sqlx::Error> {
            let connection = Arc::clone(&self.0).lock_owned().await;
            OwnedMutexGuard::try_map(connection, Option::as_mut)
                .map_err(|_closed| sqlx::Error::PoolClosed)
        }

        pub(super) async fn close(&self, system: &System) {
            if let Some(connection) = self.0.lock().await.take() {
                system.sqlite(connection.close()).await.ok(); // it only read
            }
        }
    }
}
