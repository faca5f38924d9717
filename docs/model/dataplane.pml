/* The data plane (mapping/plane.py, mapping/engine.py), the hosts above it and the containers below it. Each event is
 * one step: what happens, then `go_on`, in which parts that the event has set free are submitted again. */

/* The message or event under way; all zero between steps. What is hidden lives within one d_step. */
byte h_type, h_term, h_incarnation, h_epoch, h_entry, h_part, h_retry, h_replayed;
bit h_over;
hidden byte h_kind, h_value, h_ok, h_i;
#define NEVER 9
#define IN_SEQUENCE 1
#define OUT_OF_SEQUENCE 2

/* --- hosts ------------------------------------------------------------------------------------------------------- */

inline set_register(v) {
  reg = v;
  if :: state[READER(0)] != IDLE -> possible[0] = possible[0] | (1 << (v)) :: else fi;
  if :: state[READER(1)] != IDLE -> possible[1] = possible[1] | (1 << (v)) :: else fi
}

inline finish_read(a) {
  state[READER(a)] = IDLE; at[READER(a)] = 0; covered[READER(a)] = 0; kind[READER(a)] = 0; seen[READER(a)] = 0;
  possible[a] = 0; fault_id[READER(a)] = 0
}

inline finish_write(a) {
  state[WRITER(a)] = IDLE; at[WRITER(a)] = 0; covered[WRITER(a)] = 0; kind[WRITER(a)] = 0; seen[WRITER(a)] = 0;
  value[a] = 0; unmaps[a] = 0; fault_id[WRITER(a)] = 0
}

/* Linearizable: what is returned was in the register at some time since the read came. */
inline return_read(a, v) {
  SAY("  agent %d reads %d\n", a, v);
  assert(possible[a] & (1 << (v)));
  finish_read(a)
}

/* --- the engine -------------------------------------------------------------------------------------------------- */

inline send_fault(i) { f_kind[i] = kind[i]; f_seen[i] = seen[i]; f_id[i] = fault_id[i] }
inline take_fault(i) { f_kind[i] = 0; f_seen[i] = 0; f_id[i] = 0 }

/* Which fault an entry means for a part; 0: it goes on. */
inline fault_of(a, i, e) {
  if
  :: (i) % 2 == 0 -> h_kind = ((e) == INVALID -> READ_FAULT : 0)
  :: (i) % 2 == 1 && unmaps[a] -> h_kind = ((e) == INVALID -> LOAD_FAULT : ((e) == ZERO -> 0 : RECLAIM_FAULT))
  :: else -> h_kind = (WRITABLE(e) -> 0 : WRITE_FAULT)
  fi
}

inline begin(a, i) {
  if
  :: allowed[a] == incarnation[a] ->
    assert(lease[a]);                                                 /* nothing begins after expiry */
    SAY("  agent %d part %d begins at location %d\n", a, i, LOC(h_entry));
    state[i] = BEGUN; at[i] = LOC(h_entry); covered[i] = 1; kind[i] = 0; seen[i] = 0
  :: else -> if :: (i) % 2 == 0 -> finish_read(a) :: else ->
    finish_write(a) fi     /* the container refuses: an error */
  fi
}

/* Without a lease a part waits, and asks nobody. */
inline submit(a, i) {
  h_entry = entry[a];
  fault_of(a, i, h_entry);
  if
  :: !lease[a] -> state[i] = PARKED; kind[i] = 0; seen[i] = 0
  :: lease[a] && h_kind ->
    SAY("  agent %d part %d parks, fault kind %d entry %d\n", a, i, h_kind, h_entry);
    state[i] = PARKED; kind[i] = h_kind; seen[i] = h_entry; fault_id[i] = 1 - fault_id[i];
    if :: link[a] == OPEN -> send_fault(i) :: else fi
  :: lease[a] && !h_kind && h_entry == ZERO -> if :: (i) % 2 == 0 -> return_read(a, 0) :: else -> finish_write(a) fi
  :: else -> begin(a, i)
  fi
}

/* --- messages ---------------------------------------------------------------------------------------------------- */

/* Does the data plane accept the stamp? */
inline check(a) {
  h_ok = incarnation[a] && h_incarnation == incarnation[a];
#ifndef M_NO_TERM
  h_ok = h_ok && h_term == term[a];
#endif
#ifndef M_NO_EPOCH
  h_ok = h_ok && h_epoch == epoch[a];
#endif
#if NUMBERED
#ifndef M_NO_SESSION
  h_ok = h_ok && !h_over;
#endif
#endif
}

/* Part i of agent a, which is parked, goes on if the entry does not stop it as before, or if its fault was answered. */
inline reconsider(a, i) {
  if
  :: state[i] == PARKED && kind[i] ->
    fault_of(a, i, entry[a]);
    if
    :: h_kind != kind[i] || (h_type == ANSWER && h_part == 2 * ((i) % 2) + fault_id[i]) ->
      h_retry = h_retry | (1 << (i) % 2)
    :: else
    fi
  :: else
  fi
}

inline apply(a) {
  if
  :: h_type == ANSWER -> entry[a] = h_entry
  :: h_type == SET_INVALID -> entry[a] = INVALID
  :: h_type == SET_NO_WRITE -> entry[a] = PROTECTED(entry[a])
  :: else -> if :: state[WRITER(a)] == PARKED && kind[WRITER(a)] && h_part == 2 + fault_id[WRITER(a)] ->
    finish_write(a) :: else fi
  fi;
  reconsider(a, READER(a));
  reconsider(a, WRITER(a))
}

/* The connection to the container was lost: the write has ended for its host, but may still be carried out. */
#ifdef M_UNSETTLED_FORGOTTEN
#define UNSETTLED(a) 0
#else
#define UNSETTLED(a) (o_at[a] && o_incarnation[a] == incarnation[a])
#endif

inline begin_barrier(a) {
  answering[a] = 1;
#ifdef M_SKIP_BARRIER
  awaited[a] = 0
#else
  awaited[a] = (state[READER(a)] == BEGUN -> 1 : 0) + (state[WRITER(a)] == BEGUN -> 2 : 0) + (UNSETTLED(a) -> 4 : 0)
#endif
}

/* ADMIT: never the incarnation of an instance before. It may come late, when it is over already: then no grant that
 * follows is in time. Outstanding faults go up again. */
inline welcome(a) {
  assert(h_term >= term[a] && (incarnation[a] == h_incarnation || (!incarnation[a] && h_incarnation > served[a])));
  served[a] = h_incarnation;
  SAY("agent %d: admitted, term %d incarnation %d\n", a, h_term, h_incarnation);
  term[a] = h_term; incarnation[a] = h_incarnation; link[a] = OPEN;
#ifndef M_FAULTS_NOT_SENT_AGAIN
  if :: state[READER(a)] == PARKED && kind[READER(a)] -> send_fault(READER(a)) :: else fi;
  if :: state[WRITER(a)] == PARKED && kind[WRITER(a)] -> send_fault(WRITER(a)) :: else fi
#endif
}

/* A grant counts from when its renewal was sent: it may be too late when it comes. */
inline take_grant(a) {
  check(a);
  SAY("agent %d: grant, stamp accepted %d, in time %d\n", a, h_ok, granting[a] == IN_TIME);
  if
  :: h_ok && granting[a] == IN_TIME -> 
    assert(over[a] < incarnation[a]);
    lease[a] = 1;
    h_retry = (state[READER(a)] == PARKED && !kind[READER(a)] -> 1 : 0) + (state[WRITER(a)] == PARKED &&
      !kind[WRITER(a)] -> 2 : 0)
  :: else
  fi;
  granting[a] = 0
}

inline take_entries(a) {
  check(a);
  SAY("agent %d: message type %d entry %d part %d, stamp accepted %d replayed %d\n", a, h_type, h_entry, h_part,
    h_ok, h_replayed);
#ifndef M_NO_SEQUENCE
  if :: h_replayed == OUT_OF_SEQUENCE -> h_ok = 0 :: else fi;
#endif
  if
  :: h_ok ->
    if :: v_type && v_agent == a -> v_ahead = (v_ahead == 0 || v_ahead == NEVER -> NEVER : v_ahead - 1) :: else fi;
    apply(a);
    if :: !h_replayed && (h_type == SET_INVALID || h_type == SET_NO_WRITE) -> begin_barrier(a) :: else fi
  :: else
  fi
}

/* --- what an event leaves to be done ------------------------------------------------------------------------------ */

inline go_on(a) {
  if
  :: h_type == WELCOME -> welcome(a)
  :: h_type == GRANT -> take_grant(a)
  :: h_type > GRANT -> take_entries(a)
  :: else
  fi;
  for (h_i : 0 .. 1) {
    if :: h_retry & (1 << h_i) -> submit(a, 2 * a + h_i) :: else fi
  }
  if
  :: answering[a] && !awaited[a] -> answering[a] = 0; SAY("agent %d answers the blocking command\n", a);
    if :: link[a] == OPEN && session[a] -> response[a] = 1 :: else fi
  :: else
  fi;
  assert(!(lease[0] && lease[1] && WRITABLE(entry[0]) && WRITABLE(entry[1]) && LOC(entry[0]) != LOC(entry[1])));
  h_type = 0; h_term = 0; h_incarnation = 0; h_epoch = 0; h_entry = 0; h_part = 0; h_retry = 0;
  h_replayed = 0; h_over = 0
}

/* Sequences are not counted: within a session every message is in sequence. Of a message kept for replay `v_ahead` says
 * how many others have to be consumed before it would be;
   in another epoch or incarnation that may be so at any time. */
inline keep_message(a, ahead) {
  v_kept = 1; v_undelivered = (ahead != NEVER); v_ahead = ahead; v_agent = a; v_type = h_type; v_term = h_term;
  v_incarnation = h_incarnation; v_epoch = h_epoch; v_entry = h_entry; v_part = h_part
}

inline replay() {
  h_type = v_type; h_term = v_term; h_incarnation = v_incarnation; h_epoch = v_epoch; h_entry = v_entry;
    h_part = v_part;
  h_replayed = (v_ahead == 0 || v_epoch != epoch[v_agent] || v_incarnation != incarnation[v_agent] ->
    IN_SEQUENCE : OUT_OF_SEQUENCE);
  h_over = v_over; v_over = 0;
  v_type = 0; v_term = 0; v_incarnation = 0; v_epoch = 0; v_ahead = 0; v_entry = 0; v_part = 0; v_agent = 0;
  v_undelivered = 0
}

/* --- the container's side ---------------------------------------------------------------------------------------- */

inline read_lands(a) {
  SAY("agent %d: read of location %d lands\n", a, at[READER(a)]);
  assert(s_location[at[READER(a)]] == MAPPED);                        /* free last */
  h_value = data[at[READER(a)]];
  h_ok = lease[a] && covered[READER(a)];
  state[READER(a)] = IDLE; awaited[a] = awaited[a] & 6;
#ifdef M_COMPLETE_ANYWAY
  assert(h_ok); h_ok = 1;
#endif
  if :: h_ok -> return_read(a, h_value) :: else -> h_retry = 1 fi
}

inline write_lands(l, v) {
  SAY("write of %d lands at location %d; truth %d\n", v, l, s_truth);
  assert(s_truth == 2 * (l) + 1);                       /* free last; a snapshot does not change; no write is lost */
  data[l] = v;
  set_register(v)
}

/* Acknowledged under a lease; else its host is told that it failed. */
inline own_write_lands(a) {
  write_lands(at[WRITER(a)], value[a]);
  if
  :: lease[a] && covered[WRITER(a)] && !(state[WRITER(0)] == PARKED && unmaps[0]) &&
    !(state[WRITER(1)] == PARKED && unmaps[1]) ->
    precious = 1
  :: else
  fi;
  awaited[a] = awaited[a] & 5;
  finish_write(a)
}

/* One job at a time, and none over what one before may still do. */
#ifdef M_REPEAT_UNSETTLED
#define JOB_MAY_BEGIN 1
#else
#define JOB_MAY_BEGIN (!z_at)
#endif

inline job_lands(a) {
  SAY("job %d of agent %d lands at location %d\n", j_kind, a, j_target);
  assert(s_location[j_target] == IN_JOB);
  data[j_target] = j_value;
  j_state = (incarnation[a] == j_incarnation && j_covered && lease[a] && link[a] == OPEN -> ENDED : LOST);
  j_value = 0; j_covered = 0
}

/* --- a life ends ------------------------------------------------------------------------------------------------- */

/* The daemon's end of the session is gone: what was on its way down is dropped, and answers to it go nowhere. */
inline hang_up(a) {
  SAY("agent %d hangs up\n", a);
  link[a] = DOWN; answering[a] = 0; awaited[a] = 0; granting[a] = 0;
  h_i = 0; h_ok = REPLAYS && !v_kept;
  do
  :: nempty(down[a]) ->
    down[a] ? h_type, h_term, h_incarnation, h_epoch, h_entry, h_part;
    if :: h_ok && h_type > GRANT -> keep_message(a, h_i); h_i++ :: else fi
  :: empty(down[a]) -> break
  od;
  h_type = 0; h_term = 0; h_incarnation = 0; h_epoch = 0; h_entry = 0; h_part = 0
}

inline lose_write(a) {
  SAY("agent %d: connection lost under the write of %d\n", a, value[a]);
  o_at[a] = at[WRITER(a)]; o_value[a] = value[a]; o_incarnation[a] = incarnation[a];
  awaited[a] = (awaited[a] & 5) + (UNSETTLED(a) && (awaited[a] & 2) -> 4 : 0);
  finish_write(a)
}

inline settle_write(a) { o_at[a] = 0; o_value[a] = 0; o_incarnation[a] = 0; awaited[a] = awaited[a] & 3 }

/* A job fails, and its I/O may still be carried out. */
inline lose_job(a) {
  SAY("agent %d: connection lost under job %d\n", a, j_kind);
  z_at = j_target; z_value = j_value; z_agent = a; z_incarnation = j_incarnation;
  j_state = LOST; j_failed = j_covered && link[a] == OPEN; j_value = 0; j_covered = 0
}

inline settle_job() { z_at = 0; z_value = 0; z_agent = 0; z_incarnation = 0 }

#define MAY_DIE(a) (state[WRITER(a)] != BEGUN || !o_at[a])

/* The data plane's process ends and another starts; its write may still arrive at the container. */
inline restart_data_plane(a) {
  SAY("data plane of agent %d restarts\n", a);
  if
  :: state[WRITER(a)] == BEGUN -> o_at[a] = at[WRITER(a)]; o_value[a] = value[a]; o_incarnation[a] = incarnation[a]
  :: else
  fi;
  finish_read(a); finish_write(a);
  hang_up(a);
  instance[a]++; incarnation[a] = 0; term[a] = 0; epoch[a] = 1; lease[a] = 0; entry[a] = INVALID;
  must_restart[a] = 0;
  if :: j_kind && j_agent == a && j_state != AT_WORK -> j_state = LOST :: else fi
}

/* A lease's time has passed since anything was heard: grants on their way are too late, the controller's last one is
 * over, and so is the lease, if there was one: a new epoch [0027]. */
inline lease_time_passes(a) {
#ifndef M_LEASE_FROM_ARRIVAL
  if :: granting[a] -> granting[a] = TOO_LATE :: else fi;
#endif
  SAY("a lease's time passes for agent %d; it had one: %d\n", a, lease[a]);
  granted[a] = 0;
  if
  :: lease[a] ->
    lease[a] = 0; epoch[a]++; entry[a] = INVALID;
    covered[READER(a)] = 0; covered[WRITER(a)] = 0;
    if :: j_agent == a -> j_covered = 0 :: else fi;
    take_fault(READER(a)); take_fault(WRITER(a));
    h_retry = (state[READER(a)] == PARKED -> 1 : 0) + (state[WRITER(a)] == PARKED -> 2 : 0)
  :: else
  fi
}

proctype DataPlane(byte a) {
end:
  do
  :: atomic {
    if
    /* hosts */
    :: state[READER(a)] == IDLE && (READERS & (1 << a)) && reads < READS ->
      d_step { SAY("host reads at agent %d\n", a); reads = (READS == 255 -> 0 : reads + 1); possible[a] = 1 << reg;
        h_retry = 1 }
    :: state[WRITER(a)] == IDLE && (WRITERS & (1 << a)) && writes < WRITES ->
      d_step { SAY("host writes %d at agent %d\n", writes + 1, a); writes++; value[a] = writes; unmaps[a] = 0;
        h_retry = 2 }
    :: state[WRITER(a)] == IDLE && unmappings < UNMAPS ->
      d_step { SAY("host unmaps at agent %d\n", a); unmappings++; unmaps[a] = 1; precious = 0; h_retry = 2 }
    :: state[WRITER(a)] == PARKED && aborts < ABORTS -> d_step { SAY("host gives up at agent %d\n", a); aborts++;
      finish_write(a) }
    /* messages */
    :: down[a] ? h_type, h_term, h_incarnation, h_epoch, h_entry, h_part ->
      if
      :: true
      :: REPLAYS && !v_kept && h_type > GRANT -> d_step { keep_message(a, NEVER) }
      fi
    :: v_type && v_agent == a && REPLAYABLE -> d_step { replay() }
    /* container I/O ends */
    :: state[READER(a)] == BEGUN -> d_step { read_lands(a) }
    :: state[WRITER(a)] == BEGUN -> d_step { own_write_lands(a) }
    :: state[READER(a)] == BEGUN && allowed[a] != incarnation[a] ->
      d_step { awaited[a] = awaited[a] & 6; finish_read(a) }
    :: state[WRITER(a)] == BEGUN && allowed[a] != incarnation[a] ->
      d_step { awaited[a] = awaited[a] & 5; finish_write(a) }
    :: o_at[a] -> d_step { write_lands(o_at[a], o_value[a]); settle_write(a) }
    :: o_at[a] -> d_step { settle_write(a) }                                /* it was not received any more */
    /* jobs */
    :: j_kind && j_state == AT_WAY && j_agent == a && link[a] == OPEN && JOB_MAY_BEGIN ->
      d_step {
        if
        :: lease[a] && incarnation[a] == j_incarnation && allowed[a] == j_incarnation ->
          j_state = AT_WORK; j_covered = 1; j_value = (j_source -> data[j_source] : 0)
        :: else -> j_state = LOST
        fi
      }
    :: j_kind && j_state == AT_WORK && j_agent == a -> d_step { job_lands(a) }
    :: j_kind && j_state == AT_WORK && j_agent == a &&
      (allowed[a] != j_incarnation || incarnation[a] != j_incarnation) ->
      d_step { j_state = LOST; j_value = 0; j_covered = 0 }
    :: z_at && z_agent == a -> d_step { SAY("a late write of a job lands at location %d\n", z_at);
      assert(s_location[z_at] == IN_JOB); data[z_at] = z_value; settle_job() }
    :: z_at && z_agent == a -> d_step { settle_job() }
    /* failures */
    :: resets < RESETS && state[WRITER(a)] == BEGUN && !o_at[a] -> d_step { resets++; lose_write(a) }
    :: resets < RESETS && j_kind && j_state == AT_WORK && j_agent == a && !z_at -> d_step { resets++; lose_job(a) }
    :: expiries < EXPIRIES && (lease[a] || granting[a] || granted[a]) -> d_step { expiries++; lease_time_passes(a) }
    :: CLOCK && !session[a] && (lease[a] || granting[a] || granted[a]) -> d_step { lease_time_passes(a) }
    :: crashes < CRASHES && MAY_DIE(a) -> d_step { crashes++; restart_data_plane(a) }
    :: must_restart[a] && MAY_DIE(a) -> d_step { restart_data_plane(a) }
    :: losses < LOSSES && link[a] != DOWN -> d_step { losses++; hang_up(a) }
    :: !session[a] && link[a] != DOWN -> d_step { hang_up(a) }
    fi;
    d_step { go_on(a) }
  }
  od
}
