/* The controller (controller/core: faults, changes, fencing, admission, holdings, zeroing). A commit is one step: what
 * depends on it happens in it or later, and a crash before it leaves nothing. */

/* All zero between steps; what is hidden lives within one d_step. */
byte h_open, h_forget;
hidden byte h_loc, h_at;

/* --- sending ----------------------------------------------------------------------------------------------------- */

/* What a step sends, to whom: `transmit` at its end. */
byte t_type, t_entry, t_part, t_agent;

#define HAS(wanted) (s_location[1] == wanted || s_location[(LOCATIONS + 1) / 2] == wanted || s_location[LOCATIONS] == wanted)
/* Room is kept for what must not wait behind answers: a blocking command, a grant, a WELCOME. */
#define CAN_ANSWER(a) (session[a] && len(down[a]) < 2)
#define CAN_ORDER(a) (session[a] && len(down[a]) < 4)

inline transmit() {
  if
  :: t_type ->
    SAY("controller sends type %d to agent %d, entry %d part %d\n", t_type, t_agent, t_entry, t_part);
    if :: t_type == ANSWER && holds[t_agent] == NOTHING -> holds[t_agent] = CURRENT :: else fi;
    if
    :: link[t_agent] != DOWN ->
      down[t_agent] ! t_type, s_term, s_incarnation[t_agent], c_epoch[t_agent], t_entry, t_part
    :: else                                             /* into a connection that is dead already */
    fi
  :: else
  fi;
  t_type = 0; t_entry = 0; t_part = 0; t_agent = 0; d_part = 0
}

inline answer(i, id, e) { t_type = ANSWER; t_agent = (i) / 2; t_entry = e; t_part = 2 * ((i) % 2) + id }
inline refuse(i, id) { t_type = FAIL; t_agent = (i) / 2; t_part = 2 * ((i) % 2) + id }

/* The fault that is being decided: its part, agent, id, and the entry as seen. */
byte d_part;
hidden byte d_agent, d_id, d_seen, d_kind, d_entry;

inline answer_truth() {
  d_entry = (holds[OTHER(d_agent)] == UNKNOWN -> PROTECTED(s_truth) : s_truth);
  answer(d_part, d_id, d_entry)
}

/* --- changes ----------------------------------------------------------------------------------------------------- */

inline end_change() {
  change = 0; ch_step = 0; ch_part = 0; ch_entry = 0; ch_fault = 0; ch_void = 0; barrier[0] = 0; barrier[1] = 0
}

inline begin_change(what) { change = what; ch_step = 0; ch_part = d_part; ch_fault = d_id; ch_void = 0 }

/* Nobody asked for it with a fault. */
inline begin_service(what) { change = what; ch_step = 1; ch_part = 0; ch_fault = 0; ch_void = 1 }

/* INVALID (or NO-WRITE), blocking, at one agent, if it may hold `least`. */
inline require(a, least) {
  if :: PRESENT(a) && holds[a] >= least -> barrier[a] = TO_SEND :: else -> barrier[a] = REACHED fi
}

inline pick(wanted) {
  h_loc = 0;
  for (h_at : 1 .. LOCATIONS) { if :: s_location[h_at] == wanted && !h_loc -> h_loc = h_at :: else fi }
}

/* --- jobs -------------------------------------------------------------------------------------------------------- */

inline order_job(what, a, target, source) {
  j_kind = what; j_agent = a; j_incarnation = s_incarnation[a]; j_target = target; j_source = source;
  j_quarantined = 0; j_state = AT_WAY; j_value = 0; j_covered = 0;
  s_location[target] = IN_JOB;
  SAY("job %d at agent %d, target %d source %d\n", what, a, target, source)
}

inline forget_job() {
  j_kind = 0; j_agent = 0; j_incarnation = 0; j_target = 0; j_source = 0; j_quarantined = 0; j_state = 0; j_value = 0;
  j_covered = 0; j_failed = 0
}

/* Nobody knows how far it got. Its copy, if one waits for it, is given up. */
inline quarantine_job() {
  if
  :: j_kind && !j_quarantined ->
    if :: change == COPY && ch_step == 0 -> end_change() :: else fi;
    if :: j_state == AT_WAY || j_state == ENDED -> j_state = LOST :: else fi;
#ifdef M_NO_QUARANTINE
    s_location[j_target] = FREE;
    if :: j_state == LOST -> forget_job() :: else -> j_quarantined = 1 fi
#else
    j_quarantined = 1
#endif
  :: else
  fi
}

/* --- faults ------------------------------------------------------------------------------------------------------ */

inline allocate() {
  pick(ZEROED);
#ifdef M_REUSE_UNZEROED
  if :: !h_loc -> pick(FREE) :: else fi;
#endif
  if
  :: h_loc -> begin_change(ALLOCATE); ch_entry = 2 * h_loc + 1
#ifdef M_REPLY_BEFORE_COMMIT
    ; answer(d_part, d_id, ch_entry); ch_void = 1
#endif
  :: else -> refuse(d_part, d_id)
  fi
}

inline copy_on_write() {
  pick(ZEROED);
  if :: !h_loc -> pick(FREE) :: else fi;
  if
  :: h_loc && !j_kind ->
    begin_change(COPY); ch_entry = 2 * h_loc + 1;
    order_job(2, d_agent, h_loc, LOC(s_truth))
  :: else -> refuse(d_part, d_id)
  fi
}

inline make_writable() {
  begin_change(MAKE_WRITABLE);
  ch_step = 1; ch_entry = s_truth;
  barrier[d_agent] = REACHED; require(OTHER(d_agent), UNKNOWN)
}

#ifdef M_ALLOCATE_BLINDLY
#define ALLOCATES (d_seen == ZERO)
#else
#define ALLOCATES (d_seen == ZERO && s_truth == ZERO)
#endif

/* If the entry as seen is not the truth, the answer is the truth. */
inline decide_write() {
  if
  :: ALLOCATES -> allocate()
  :: !ALLOCATES && (s_truth == ZERO || (!WRITABLE(s_truth) && d_seen != s_truth)) -> answer_truth()
  :: !ALLOCATES && s_truth > 1 && !WRITABLE(s_truth) && d_seen == s_truth -> copy_on_write()
  :: !ALLOCATES && WRITABLE(s_truth) && holds[OTHER(d_agent)] != UNKNOWN -> answer_truth()
  :: !ALLOCATES && WRITABLE(s_truth) && holds[OTHER(d_agent)] == UNKNOWN -> make_writable()
  fi
}

inline decide_reclaim() {
  if
  :: s_truth > 1 && PROTECTED(d_seen) == PROTECTED(s_truth) ->
    begin_change(RECLAIM);
    ch_step = 1;
    barrier[d_agent] = REACHED; require(OTHER(d_agent), NOTHING)
  :: else -> answer_truth()
  fi
}

/* A write waits while a segment can still be zeroed for it. */
#ifdef M_REUSE_UNZEROED
#define STARVES(i) 0
#else
#define STARVES(i) (f_kind[i] == WRITE_FAULT && f_seen[i] == ZERO && s_truth == ZERO && !HAS(ZEROED) && \
    (HAS(FREE) || (j_kind == 1 && !j_quarantined)))
#endif
#define CAN_DECIDE(i) (change == 0 && f_kind[i] && CAN_ANSWER((i) / 2) && c_epoch[(i) / 2] == epoch[(i) / 2] && \
    !STARVES(i))

inline decide() {
  d_agent = d_part / 2; d_id = f_id[d_part]; d_seen = f_seen[d_part]; d_kind = f_kind[d_part];
  take_fault(d_part);
  SAY("controller decides fault kind %d of part %d, seen %d, truth %d, holds %d %d\n", d_kind, d_part, d_seen,
    s_truth, holds[0], holds[1]);
  if
  :: d_kind == WRITE_FAULT -> decide_write()
  :: d_kind == RECLAIM_FAULT -> decide_reclaim()
  :: else -> answer_truth()
  fi
}

/* --- commits ----------------------------------------------------------------------------------------------------- */

/* The new location is the truth. Whoever held the old one holds something older now. */
inline learn() {
  if :: holds[ch_part / 2] != NOTHING || !ch_void -> holds[ch_part / 2] = UNKNOWN :: else fi;
  if :: holds[OTHER(ch_part / 2)] == CURRENT -> holds[OTHER(ch_part / 2)] = UNKNOWN :: else fi
}

inline commit_location() {
  SAY("commit: entry %d\n", ch_entry);
  assert(data[LOC(ch_entry)] == reg);                 /* a copy is complete, a new segment zeroed */
  s_location[LOC(ch_entry)] = MAPPED;
  s_truth = ch_entry;
  learn();
  ch_step = 1;
  barrier[ch_part / 2] = REACHED;
#ifdef M_WRITABLE_AT_ONCE
  barrier[OTHER(ch_part / 2)] = REACHED;
#else
  require(OTHER(ch_part / 2), CURRENT)
#endif
}

/* The faulting table comes last, and only if its unmap has faulted again is anything reclaimed. */
inline commit_zero() {
  SAY("commit: ZERO, location freed\n");
  assert(!precious);                                  /* no write is erased that came after the unmap was given up */
  if :: LOC(s_truth) != s_snapshot -> s_location[LOC(s_truth)] = FREE :: else fi;
  s_truth = ZERO;
  set_register(0);
  end_change()
}

/* A location that only the snapshot still has may still be read by I/O begun before: everybody is asked. */
inline commit_snapshot_gone() {
  SAY("commit: snapshot of location %d gone, truth %d\n", s_snapshot, s_truth);
  if
  :: s_truth > 1 && LOC(s_truth) == s_snapshot -> s_truth = 2 * s_snapshot + 1
  :: else -> s_location[s_snapshot] = FREE
  fi;
  s_snapshot = 0;
  end_change()
}

#define ALL_REACHED (barrier[0] == REACHED && barrier[1] == REACHED)
#define STILL_WANTED (!ch_void && f_kind[ch_part] == LOAD_FAULT)
#ifdef M_FREE_BEFORE_BARRIER
#define RECLAIMABLE 1
#else
#ifdef M_RECLAIM_UNWANTED
#define RECLAIMABLE (ALL_REACHED && ch_step == 2)
#else
#define RECLAIMABLE (ALL_REACHED && ch_step == 2 && STILL_WANTED)
#endif
#endif
#ifdef M_SNAPSHOT_AT_ONCE
#define SNAPSHOT_SAFE 1
#else
#define SNAPSHOT_SAFE ALL_REACHED
#endif
#ifdef M_FREE_ASKS_HOLDERS_ONLY
#define LEAST_TO_FREE CURRENT
#else
#define LEAST_TO_FREE NOTHING
#endif

/* --- sessions, fences, admission --------------------------------------------------------------------------------- */

/* The controller's end of the session is gone: its faults and answers are void, its commands wait. */
inline forget_session(a) {
  SAY("controller forgets the session of agent %d\n", a);
  session[a] = 0; response[a] = 0;
  take_fault(READER(a)); take_fault(WRITER(a));
  if :: barrier[a] == SENT -> barrier[a] = TO_SEND :: else fi;
  if :: change && ch_part / 2 == a -> ch_void = 1 :: else fi;
  if :: j_kind && j_agent == a -> quarantine_job() :: else fi
}

/* Its lease had expired: every entry is forgotten, and barriers are asked for again. */
inline learn_epoch(a) {
  SAY("controller learns epoch %d of agent %d\n", epoch[a], a);
  c_epoch[a] = epoch[a]; holds[a] = NOTHING;
#ifndef M_COMMAND_NOT_SENT_AGAIN
  if :: barrier[a] == SENT -> barrier[a] = TO_SEND; response[a] = 0; answering[a] = 0; awaited[a] = 0 :: else fi;
#endif
  if :: change && ch_part / 2 == a -> ch_void = 1 :: else fi
}

inline declare_over(a) {
  SAY("incarnation %d of agent %d is over\n", s_incarnation[a], a);
  s_standing[a] = FENCED;
  over[a] = s_incarnation[a];
  assert(!(lease[a] && incarnation[a] == s_incarnation[a]));
  holds[a] = NOTHING;
  if :: barrier[a] == TO_SEND || barrier[a] == SENT -> barrier[a] = REACHED :: else fi;
  if
  :: j_kind && j_agent == a && j_incarnation == s_incarnation[a] -> s_location[j_target] = FREE; forget_job()
  :: else
  fi
}

/* A transaction; the container host is told after it. */
inline admit(a) {
  s_incarnation[a]++; s_instance[a] = instance[a]; s_standing[a] = ALIVE;
  allowed[a] = s_incarnation[a];
  replaced[a] = 0; holds[a] = NOTHING; c_epoch[a] = 0; h_open = 1
}

inline open_session(a) {
  assert(s_standing[a] == ALIVE && s_incarnation[a] > over[a]);
  if :: c_epoch[a] && c_epoch[a] != epoch[a] -> learn_epoch(a) :: else -> c_epoch[a] = epoch[a] fi;
  session[a] = 1; granted[a] = 1; link[a] = GREETED;
  t_type = WELCOME; t_agent = a
}

inline hello(a) {
  SAY("HELLO of agent %d, standing %d\n", a, s_standing[a]);
  v_over = v_over || (v_type && v_agent == a);   /* the data plane has numbered a new session */
  if
  :: s_instance[a] == instance[a] && s_standing[a] == ALIVE -> h_open = 1
  :: s_instance[a] == instance[a] && s_standing[a] != ALIVE -> must_restart[a] = 1
  :: s_instance[a] != instance[a] && s_standing[a] == ALIVE -> replaced[a] = 1; s_standing[a] = FENCING
  :: s_instance[a] != instance[a] && s_standing[a] == FENCING -> replaced[a] = 1
  :: s_instance[a] != instance[a] && s_standing[a] == FENCED -> admit(a)
  fi
#ifdef M_ADMIT_BEFORE_FENCE
  ; if :: s_standing[a] == FENCING && replaced[a] -> declare_over(a); admit(a) :: else fi
#endif
}

#ifdef M_SKIP_FENCE
#define NONE_LEFT(a) 1
#else
#ifdef M_UNCONFIRMED_FENCE
#define NONE_LEFT(a) (allowed[a] != s_incarnation[a])
#else
#define NONE_LEFT(a) (allowed[a] != s_incarnation[a] && !IN_FLIGHT(a))
#endif
#endif
#ifdef M_FENCE_IGNORES_LEASE
#define LEASE_OVER(a) 1
#else
#define LEASE_OVER(a) (!granted[a] || replaced[a])
#endif

/* A new reign: every agent is presumed alive, leased, and holding anything. What was not committed has not been. */
inline restart_controller() {
  SAY("controller restarts\n");
  s_term++;
  end_change();
  quarantine_job();
  for (h_at : 0 .. 1) {
    session[h_at] = 0; response[h_at] = 0; replaced[h_at] = 0; c_epoch[h_at] = 0;
    take_fault(READER(h_at)); take_fault(WRITER(h_at));
#ifdef M_RESTART_FORGETS_LEASES
    granted[h_at] = 0;
#else
    granted[h_at] = PRESENT(h_at);
#endif
#ifdef M_RESTART_PRESUMES_NOTHING
    holds[h_at] = NOTHING
#else
    holds[h_at] = (PRESENT(h_at) -> UNKNOWN : NOTHING)
#endif
  };
  h_at = 0
}

/* Faults and changes. */
proctype Controller() {
end:
  do
  :: atomic {
    if
    :: CAN_DECIDE(0) -> d_part = 0; d_step { decide() }
    :: CAN_DECIDE(1) -> d_part = 1; d_step { decide() }
    :: CAN_DECIDE(2) -> d_part = 2; d_step { decide() }
    :: CAN_DECIDE(3) -> d_part = 3; d_step { decide() }

    :: change == ALLOCATE && ch_step == 0 -> d_step { commit_location() }
    :: change == COPY && ch_step == 0 && j_kind == 2 && j_state == ENDED && !j_quarantined && session[j_agent] ->
      d_step { forget_job(); commit_location() }
    :: (change == ALLOCATE || change == COPY || change == MAKE_WRITABLE) && ch_step == 1 && ALL_REACHED &&
       (ch_void || CAN_ANSWER(ch_part / 2)) ->
      d_step { if :: !ch_void -> answer(ch_part, ch_fault, ch_entry) :: else fi; end_change() }

    :: change == RECLAIM && ch_step == 1 && ALL_REACHED -> d_step { ch_step = 2; require(ch_part / 2, NOTHING) }
    :: change == RECLAIM && RECLAIMABLE -> d_step { commit_zero() }
    :: change == RECLAIM && ch_step == 2 && ALL_REACHED && !STILL_WANTED -> d_step { end_change() }

    :: change == 0 && snapshots < SNAPSHOTS && !s_snapshot && WRITABLE(s_truth) ->
      d_step { snapshots++; begin_service(SNAPSHOT); require(0, NOTHING); require(1, NOTHING) }
    :: change == SNAPSHOT && SNAPSHOT_SAFE ->
      d_step { SAY("commit: snapshot\n"); s_snapshot = LOC(s_truth); s_truth = PROTECTED(s_truth); end_change() }
    :: change == 0 && s_snapshot && !j_kind ->
      d_step {
        begin_service(DROP_SNAPSHOT);
        if
        :: s_truth > 1 && LOC(s_truth) == s_snapshot -> barrier[0] = REACHED; barrier[1] = REACHED
        :: else -> require(0, LEAST_TO_FREE); require(1, LEAST_TO_FREE)
        fi
      }
    :: change == DROP_SNAPSHOT && ALL_REACHED -> d_step { commit_snapshot_gone() }

    :: restarts < RESTARTS -> d_step { restarts++; restart_controller() }
    fi;
    d_step { transmit() }
  }
  od
}

/* What the controller does about one agent: sessions, leases, barriers, fences, zeroing. */
proctype Standing(byte a) {
end:
  do
  :: atomic {
    if
    :: session[a] && link[a] == OPEN && c_epoch[a] != epoch[a] -> d_step { learn_epoch(a) }
    :: session[a] && link[a] == OPEN && !granting[a] && !lease[a] && c_epoch[a] == epoch[a] ->
      d_step { granted[a] = 1; granting[a] = IN_TIME; t_type = GRANT; t_agent = a }
    :: barrier[a] == TO_SEND && CAN_ORDER(a) ->
      d_step { barrier[a] = SENT; t_type = (change == SNAPSHOT -> SET_NO_WRITE : SET_INVALID); t_agent = a }
    :: barrier[a] == SENT && response[a] ->
      d_step { response[a] = 0; barrier[a] = REACHED; if :: change != SNAPSHOT -> holds[a] = NOTHING :: else fi }

    :: link[a] == DOWN && !must_restart[a] &&
       !(s_standing[a] == FENCING && s_instance[a] != instance[a] && replaced[a] && !session[a]) ->
      d_step { h_forget = session[a]; hello(a) }
    :: losses < LOSSES && session[a] -> d_step { losses++; h_forget = 1 }

    :: s_standing[a] == ALIVE && (barrier[a] == TO_SEND || barrier[a] == SENT) && !granted[a] ->
      d_step { SAY("controller fences agent %d\n", a); s_standing[a] = FENCING; h_forget = 1 }
    :: s_standing[a] == ALIVE && fences < FENCES -> d_step { fences++; SAY("controller fences agent %d\n", a);
      s_standing[a] = FENCING; h_forget = 1 }
#ifndef M_SKIP_FENCE
    :: s_standing[a] == FENCING && allowed[a] == s_incarnation[a] ->
      d_step { SAY("container host denies agent %d\n", a); allowed[a] = 0 }
#endif
    :: s_standing[a] == FENCING && NONE_LEFT(a) && LEASE_OVER(a) -> d_step { declare_over(a) }

    :: !j_kind && session[a] && granted[a] && HAS(FREE) && !HAS(ZEROED) -> d_step { pick(FREE);
      order_job(1, a, h_loc, 0) }
    :: j_kind == 1 && j_agent == a && j_state == ENDED && !j_quarantined && session[a] ->
      d_step { s_location[j_target] = ZEROED; forget_job() }
    /* only the session broke: the same incarnation is told again; its answer says that the first has ended, too */
    :: j_kind == 1 && j_agent == a && j_state == LOST && j_quarantined && !j_failed && CAN_ANSWER(a) && granted[a] &&
       j_incarnation == s_incarnation[a] ->
      d_step { SAY("job %d is ordered again\n", j_kind); j_quarantined = 0; j_state = AT_WAY }
    :: j_kind && j_agent == a && j_state == LOST && !j_quarantined && CAN_ANSWER(a) ->
      d_step { if :: change == COPY && ch_step == 0 && !ch_void -> refuse(ch_part, ch_fault) :: else fi;
        quarantine_job() }
    fi;
    d_step {
      if :: h_forget -> forget_session(a) :: else fi;
      if :: h_open -> open_session(a) :: else fi;
      h_open = 0; h_forget = 0;
      transmit()
    }
  }
  od
}
