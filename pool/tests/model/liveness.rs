//! Whoever waits is served, once all that stands in the way is over.

use farcall_pool::model::Stage;

use super::world::{SERVERS, World};

impl World {
    /// From here on everyone behaves: who waits gets what it wants, one after the other, also where one server never comes back
    /// and some of those who wait can be served by no other.
    pub(super) fn everyone_is_served(&mut self) {
        self.amnesty();
        let away = self.random.below(2 * SERVERS);
        for index in 0..SERVERS {
            self.come_back(index, index == away);
        }
        let mut rounds = 0;
        while self.waiting_for_what_is_there() > 0 {
            rounds += 1;
            let views = self.pool.lease_views(None, false);
            assert!(rounds < 2000, "some wait for ever: {views:#?}");
            self.now_ms += 1000;
            for view in &views {
                let owner = self.asked.get(&view.lease).map(|asked| asked.client);
                match (view.stage, owner) {
                    (Stage::Queued, Some(client)) => {
                        self.pool.renew(self.now_ms, client, view.lease).unwrap();
                    }
                    _ => {
                        let _ = self
                            .pool
                            .release(self.now_ms, None, view.lease, "test", "done");
                    }
                }
            }
            for index in 0..SERVERS {
                self.renew_one(index, true);
                self.renew_one(index, true);
            }
            self.pool.tick(self.now_ms);
            self.check();
        }
    }

    fn come_back(&mut self, index: u64, is_away: bool) {
        let server = &mut self.servers[index as usize];
        if is_away {
            server.alive = false;
            server.runs.clear();
            return;
        }
        server.drained = false;
        if !server.alive || !server.lost.is_empty() {
            self.register_server(index);
        }
        let name = format!("s{index}");
        self.pool.drain(self.now_ms, &name, false, "test").unwrap();
    }

    /// Requests that wait, and that the servers that are there could serve if nobody else had anything.
    fn waiting_for_what_is_there(&self) -> usize {
        let views = self.pool.lease_views(None, false);
        let waiting = views.iter().filter(|it| it.stage == Stage::Queued);
        waiting.filter(|it| self.could_serve(it.lease)).count()
    }
}
