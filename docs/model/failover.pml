/* The lease, barrier, copy-on-write and failover protocol of segmap (design: 4-8), one segment of one virtual disk at
 * two agents. README.md says what is abstracted and how. The switches are in parameters.pml; a mutant is `-DM_...`.
 *
 * An entry is one byte: INVALID, ZERO, or location l with NO-WRITE (2l) or without (2l + 1).
 */
#include "parameters.pml"

#ifdef HISTORY
#define SAY(...) printf(__VA_ARGS__)
#else
#define SAY(...) skip
#endif

#define AGENTS 2
#define OTHER(a) (1 - (a))
#define INVALID 0
#define ZERO 1
#define LOC(e) ((e) >> 1)
#define WRITABLE(e) ((e) > 1 && ((e) & 1))
#define PROTECTED(e) ((e) > 1 -> ((e) & 254) : (e))
#define MAPS(e, l) ((e) > 1 && LOC(e) == (l))

/* --- the store: what survives the controller ------------------------------------------------------------------- */
#define FREE 0
#define ZEROED 1
#define MAPPED 2
#define IN_JOB 3
#define ALIVE 1
#define FENCING 2
#define FENCED 3
byte s_term = 1;
byte s_truth = ZERO;             /* NO-WRITE in the truth: the location is shared with the snapshot */
byte s_snapshot = 0;             /* its location, 0: none */
byte s_location[LOCATIONS + 1];
byte s_standing[AGENTS] = ALIVE;
byte s_incarnation[AGENTS] = 1;
byte s_instance[AGENTS] = 1;
byte j_kind = 0;                 /* the job: 1 zero, 2 copy; where, by whom */
byte j_agent, j_incarnation, j_target;
bit j_quarantined;

/* --- the controller's memory ----------------------------------------------------------------------------------- */
#define NOTHING 0
#define CURRENT 1
#define UNKNOWN 2
bit session[AGENTS] = 1;
byte c_epoch[AGENTS] = 1;
byte holds[AGENTS];
bit granted[AGENTS] = 1;         /* it may have a lease, as far as the controller can know */
bit replaced[AGENTS];            /* another data plane of the agent has introduced itself */
#define ALLOCATE 1
#define MAKE_WRITABLE 2
#define RECLAIM 3
#define SNAPSHOT 4
#define COPY 5
#define DROP_SNAPSHOT 6
byte change = 0;                 /* one change at a time */
byte ch_step, ch_part, ch_entry;
bit ch_fault, ch_void;
#define TO_SEND 1
#define SENT 2
#define REACHED 3
byte barrier[AGENTS];

/* --- the wire: controller to agent in order; the other direction as it is needed -------------------------------- */
#define WELCOME 1
#define GRANT 2
#define ANSWER 3
#define FAIL 4
#define SET_INVALID 5
#define SET_NO_WRITE 6
chan down[AGENTS] = [6] of { byte, byte, byte, byte, byte, byte };
  /* type term incarnation epoch entry part*2+fault */
#define IN_TIME 1
#define TOO_LATE 2
byte granting[AGENTS];           /* a LEASE_GRANT is on its way */
bit response[AGENTS];            /* the answer to the blocking command */
byte f_kind[2 * AGENTS], f_seen[2 * AGENTS];
bit f_id[2 * AGENTS];            /* MAP_FAULTs on their way */

/* --- a data plane, and its daemon's link to the controller ------------------------------------------------------ */
#define DOWN 0
#define GREETED 1
#define OPEN 2
byte link[AGENTS] = OPEN;
bit must_restart[AGENTS];        /* its incarnation has been fenced, and it knows */
byte instance[AGENTS] = 1;
byte incarnation[AGENTS] = 1;
byte term[AGENTS] = 1;
byte epoch[AGENTS] = 1;
bit lease[AGENTS] = 1;
byte entry[AGENTS];
byte awaited[AGENTS];            /* parts that the blocking command waits for: 1 the read, 2 the write */
bit answering[AGENTS];
#define IDLE 0
#define PARKED 1
#define BEGUN 2
#define READ_FAULT 1
#define WRITE_FAULT 2
#define RECLAIM_FAULT 3
#define LOAD_FAULT 4             /* an unmap that asks for the entry: READ on the wire */
byte state[2 * AGENTS];          /* part 2a: a's read; 2a + 1: its write or unmap */
byte at[2 * AGENTS];
bit covered[2 * AGENTS];         /* begun in the present epoch */
byte kind[2 * AGENTS], seen[2 * AGENTS];
bit fault_id[2 * AGENTS];
bit unmaps[AGENTS];
byte value[AGENTS];
byte possible[AGENTS];           /* values (bits) that the read may return: the register had them since it came */
#define READER(a) (2 * (a))
#define WRITER(a) (2 * (a) + 1)

/* --- the containers and the container host ---------------------------------------------------------------------- */
byte data[LOCATIONS + 1];
byte allowed[AGENTS] = 1;        /* incarnation whose host NQN is let in */
byte o_at[AGENTS], o_value[AGENTS], o_incarnation[AGENTS];  /* a write of a data plane that has died */
#define AT_WAY 0
#define AT_WORK 1
#define ENDED 2
#define LOST 3
byte j_state, j_value, j_source;
byte z_at, z_value, z_agent, z_incarnation;   /* I/O of a job that failed when its connection was lost */
bit j_covered, j_failed;         /* failed: the data plane said so; only its end settles it */

/* --- ghosts: what the hosts may see ----------------------------------------------------------------------------- */
byte reg = 0;                    /* the segment's contents as one register */
bit precious;                    /* a write was acknowledged that no unmap may erase */
byte over[AGENTS];               /* highest incarnation that was declared over */
byte served[AGENTS] = 1;         /* highest one that a data plane of the agent has taken */
byte reads, writes, unmappings, snapshots, losses, resets, expiries, crashes, restarts, fences, aborts;
byte v_type, v_term, v_incarnation, v_epoch, v_ahead, v_entry, v_part, v_agent;   /* a message kept for replay */
bit v_undelivered, v_kept, v_over;   /* over: its session is, a new one has begun */

/* A daemon that was stopped goes on: it brings a message that the data plane has had already, or one from before. The
 * data plane knows what is of another session by its number, which is never used again: for the model that is a bit of
 * the message. Without numbers what was never delivered of the present term, incarnation and epoch is not replayed: a
 * daemon drops what is queued of an ended session before it asks for the sequences. */
#if NUMBERED
#define REPLAYABLE 1
#else
#define REPLAYABLE (!v_undelivered || v_term != term[v_agent] || v_incarnation != incarnation[v_agent] \
    || v_epoch != epoch[v_agent])
#endif

#define PRESENT(a) (s_standing[a] == ALIVE || s_standing[a] == FENCING)
#define IN_FLIGHT(a) ((incarnation[a] == s_incarnation[a] && (state[READER(a)] == BEGUN || state[WRITER(a)] == BEGUN)) \
    || (z_at && z_agent == (a) && z_incarnation == s_incarnation[a]) \
    || (o_at[a] && o_incarnation[a] == s_incarnation[a]) \
    || (j_kind && j_state == AT_WORK && j_agent == (a) && j_incarnation == s_incarnation[a]))

#include "dataplane.pml"
#include "controller.pml"

#ifdef PROGRESS
/* Failures, and what hosts ask for, are bounded: they stop. Then every part ends, and none is left parked: neither for
 * ever on the way (the formula, under weak fairness) nor where nothing can happen any more (the assertion). */
#define QUIET (state[0] == IDLE && state[1] == IDLE && state[2] == IDLE && state[3] == IDLE)
ltl progress { <> [] QUIET }

proctype Stillness() { timeout -> assert(QUIET) }
#endif

init {
  atomic {
    byte l;
    for (l : 1 .. LOCATIONS) { s_location[l] = ZEROED }
    run DataPlane(0);
    run DataPlane(1);
    run Standing(0);
    run Standing(1);
#ifdef PROGRESS
    run Stillness();
#endif
    run Controller()
  }
}
