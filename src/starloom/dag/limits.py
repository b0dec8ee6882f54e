"""Every limit of Starloom: sizes, counts and times, each with its unit in its name.

A limit that is reached is an error that quotes the name and the number from here.
"""

from typing import Final

# Constellations
STAGES_PER_JOB_MAX: Final = 20_000
DEPENDENCIES_PER_JOB_MAX: Final = 100_000
NAME_CHARACTERS_MAX: Final = 128
PARAMS_BYTES_MAX: Final = 256 * 1024
OUTPUTS_PER_STAGE_MAX: Final = 10_000
DOCUMENT_OFF_LOOP_BYTES_MIN: Final = 64 * 1024
DOCUMENT_BYTES_MAX: Final = 16 * 1024 * 1024
IMPORT_BYTES_MAX: Final = 64 * 1024 * 1024
DOCUMENT_DEPTH_MAX: Final = 32
DOCUMENT_VALUES_MAX: Final = 4_000_000
RETRIES_MAX: Final = 1_000
DURATION_SECONDS_MAX: Final = 30 * 86_400.0
PREFERENCES_PER_STAGE_MAX: Final = 16
PREFERENCE_SECONDS: Final = 1.0
"""How much later a stage may end for a place that it prefers, where nothing else is said."""
VARIANTS_PER_STAGE_MAX: Final = 8
DEGRADED_TOLD_MAX: Final = 16
"""Changes of variants that a job tells of."""
ATTRIBUTE_CHARACTERS_MAX: Final = 256
SPREAD_STAGES_MAX: Final = 64
"""Stages of a job that may be spread together: each is placed so that the others still find places."""
OBJECTIVE_WEIGHT_MIN: Final = 1e-9
OBJECTIVE_WEIGHT_MAX: Final = 1e9
"""Seconds that a joule, or one of what prices are in, may count for, if for any."""
OBJECTIVE_WITHIN_MAX: Final = 100.0
CYCLES_REPORTED_MAX: Final = 10
CYCLE_NAMES_SHOWN: Final = 12
SUGGESTION_NAMES_MAX: Final = 1_000
SUGGESTIONS_MAX: Final = 100
"""For so many unknown names of one document or patch it is looked up what was meant, which takes time in all that is known."""
SUGGESTION_NAMES_SHOWN: Final = 12

# Values and transfer
INLINE_VALUE_BYTES_MAX: Final = 16 * 1024
INLINE_VALUES_BYTES_MAX: Final = 256 * 1024
COPY_PAST_CACHES_BYTES_MIN: Final = 1024 * 1024
CHUNK_BYTES: Final = 512 * 1024
MESSAGE_BYTES_MAX: Final = 32 * 1024 * 1024
ASSIGN_INPUTS_BYTES_MAX: Final = 31 * 1024 * 1024
"""What the inputs of an assignment take in its message, in which parameters and the like have the rest."""
METADATA_BYTES_MAX: Final = 1024 * 1024
STATUS_DETAIL_BYTES_MAX: Final = 512 * 1024
STATUS_TEXT_CHARACTERS_MAX: Final = 10_000
STATUS_WAIT_SECONDS: Final = 0.5
STATUS_MESSAGE_CHARACTERS_MAX: Final = 500
KEEPALIVE_SECONDS: Final = 10.0
TRANSFER_STALL_SECONDS: Final = 5.0
OFF_LOOP_BYTES_MIN: Final = 1024 * 1024
BYTES_MAX: Final = (1 << 63) - 1
"""What a number of bytes may be at all: what 64 bits hold."""
VALUE_BYTES_MAX: Final = 1024 * 1024 * 1024
TENSOR_DIMENSIONS_MAX: Final = 16
IMAGE_PIXELS_MAX: Final = 64 * 1024 * 1024
VISION_SIDE_PIXELS_MAX: Final = 8_192
FACE_CANDIDATES_MAX: Final = 2_000
TEXT_LINES_MAX: Final = 1_000
TEXT_LINE_PIXELS_MAX: Final = 3_200
AUDIO_SECONDS_MAX: Final = 600.0
SAMPLE_RATE_HZ_MIN: Final = 4_000
SAMPLE_RATE_HZ_MAX: Final = 192_000
SPEECH_CHARACTERS_MAX: Final = 10_000
TRANSCRIPT_TOKENS_PER_WINDOW_MAX: Final = 224
CHECKPOINT_BYTES_MAX: Final = 1024 * 1024 * 1024
AGENT_HELD_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
AGENT_ARENA_BYTES_MAX: Final = 1024 * 1024 * 1024
AGENT_ARENA_STEP_BYTES: Final = 16 * 1024 * 1024
AGENT_ARENA_VALUES_MAX: Final = 4_096
AGENT_ARENA_VALUE_BYTES_MIN: Final = 64 * 1024
LATE_DIGEST_BYTES_MIN: Final = 4 * 1024 * 1024
HASHES_AT_ONCE: Final = 2
HASH_NICENESS: Final = 10
NEIGHBOUR_AGAIN_SECONDS: Final = 30.0
HASH_THREADS_BYTES_MIN: Final = 32 * 1024 * 1024
FRAME_BYTES: Final = 1024 * 1024
LINK_MEASURE_BYTES_MIN: Final = 64 * 1024
LINK_MEASURED_SECONDS: Final = 60.0
LINKS_KNOWN_MAX: Final = 4_096

# Streams
STREAM_BUFFER_CHUNKS: Final = 64
STREAM_BUFFER_BYTES: Final = 32 * 1024 * 1024
STREAM_BUFFER_CHUNKS_MAX: Final = 4_096
STREAM_BUFFER_BYTES_MAX: Final = 256 * 1024 * 1024
STREAM_JOB_BYTES_MAX: Final = 512 * 1024 * 1024
STREAM_CHUNK_BYTES_MAX: Final = 16 * 1024 * 1024
STREAM_WINDOW_CHUNKS: Final = 16
STREAM_WINDOW_BYTES: Final = 16 * 1024 * 1024
STREAM_MESSAGE_BYTES: Final = 512 * 1024
STREAM_MESSAGE_CHUNKS: Final = 64
STREAM_WATCH_SECONDS: Final = 0.2
STREAM_STUCK_SECONDS: Final = 5.0
STREAM_STALL_SECONDS: Final = 900.0
STREAM_WINDOW_ITEMS_MAX: Final = 100_000
STREAM_WINDOWS_OPEN_MAX: Final = 1_000
STREAM_COLLECTED_BYTES_MAX: Final = 256 * 1024 * 1024
STREAM_END_SECONDS: Final = 60.0
STREAM_INPUT_BYTES: Final = 8 * 1024 * 1024
OPEN_INPUT_STREAMS_MAX: Final = 128
STREAM_SEGMENT_BYTES: Final = 4 * 1024 * 1024
STREAM_SPOOL_BYTES_MAX: Final = 1024 * 1024 * 1024

# Jobs and admission
OPEN_JOBS_MAX: Final = 1_000
OPEN_STAGES_MAX: Final = 200_000
JOB_KEY_CHARACTERS_MAX: Final = 128
JOB_PARALLEL_MAX: Final = 10_000
OVERLOADED_RETRY_SECONDS: Final = 1.0
JOB_INPUT_BYTES_MAX: Final = 256 * 1024 * 1024
FINISHED_JOBS_KEPT: Final = 1_000
FINISHED_STAGES_KEPT: Final = 200_000
NODES_EXPLAINED_MAX: Final = 12

# Patches
PATCHES_PER_JOB_MAX: Final = 10_000
PATCHES_WAITING_MAX: Final = 16
PATCH_REFUSALS_KEPT: Final = 100
PATCH_SETTLE_SECONDS: Final = 20.0
PATCH_ID_CHARACTERS_MAX: Final = 128
PATCH_WHY_CHARACTERS_MAX: Final = 1_000
PATCH_LINES_SHOWN: Final = 100
GROWN_STAGES_MAX: Final = 10_000
GROWN_GENERATIONS_MAX: Final = 1_000
GROWTH_BYTES_MAX: Final = 4 * 1024 * 1024

# Attempts
RETRIES_DEFAULT: Final = 2
BACKOFF_FIRST_SECONDS: Final = 0.1
BACKOFF_FACTOR: Final = 2.0
BACKOFF_FACTOR_MAX: Final = 1_000.0
BACKOFF_LAST_SECONDS: Final = 30.0
AGENT_DEATHS_PER_STAGE_MAX: Final = 3
INPUT_LOSSES_PER_STAGE_MAX: Final = 20
UNREACHABLE_BEFORE_REMADE: Final = 3
UNREACHABLE_WHILE_RELAYED: Final = 8
UNREACHABLE_FIRST_SECONDS: Final = 0.2
UNREACHABLE_LAST_SECONDS: Final = 5.0
SLEEP_SECONDS_MAX: Final = 86_400.0
STRAGGLER_FACTOR_DEFAULT: Final = 3.0
STRAGGLER_FACTOR_MAX: Final = 1_000.0
STRAGGLER_AFTER_SECONDS: Final = 1.0
STRAGGLER_AFTER_SECONDS_MIN: Final = 0.1
STRAGGLERS_LOOKED_AT: Final = 64
STRAGGLERS_COPIED_AT_ONCE: Final = 8
STRAGGLERS_LOOK_SECONDS: Final = 0.001
STUCK_LOOK_SECONDS: Final = 5.0
STUCK_GRACE_SECONDS: Final = 300.0
STUCK_STAGES_SHOWN: Final = 5
DEADLINE_NOTES: Final = 10
DEADLINE_NOTE_SECONDS: Final = 1.0

# Replicas of outputs
REPLICAS_MAX: Final = 8
AGENT_REPLICA_BYTES_MAX: Final = AGENT_HELD_BYTES_MAX // 2
AGENT_REPLICATIONS_AT_ONCE: Final = 2
REPLICA_NODES_COMPARED_MAX: Final = 64
REPLICATE_AGAIN_FIRST_SECONDS: Final = 0.5
REPLICATE_AGAIN_LAST_SECONDS: Final = 30.0

# Sessions and leases
LEASE_SECONDS: Final = 3.0
HEARTBEAT_SECONDS: Final = 0.5
LOST_AFTER_SUSPECT_SECONDS: Final = 3.0
LOST_NODE_COUNTS_SECONDS: Final = 60.0
LOST_NODES_KEPT: Final = 1_000
AGENT_FLAPS_MAX: Final = 3
AGENT_FLAP_WINDOW_SECONDS: Final = 60.0
AGENT_FLAP_REST_SECONDS: Final = 10.0
RECONNECT_FIRST_SECONDS: Final = 0.05
RECONNECT_LAST_SECONDS: Final = 1.0
SESSION_CREDITS: Final = 4_096
SESSION_FRAME_MESSAGES_MAX: Final = 512
SESSION_FRAME_BYTES_MAX: Final = 1024 * 1024
ACKNOWLEDGEMENT_WAITS_SECONDS: Final = 0.02
REPORT_STARTED_SECONDS: Final = 0.005
REPORTS_GATHER_SECONDS: Final = 0.005
CANCEL_GRACE_SECONDS: Final = 30.0

# The orchestrator's loop
BATCH_INPUTS_MAX: Final = 512
PLACEMENTS_PER_DECISION: Final = 128
"""So that the first stages of a large job run while the others are placed, and nobody else waits for all of them."""
DELEGATED_SECONDS: Final = 2.0
DELEGATED_UNKNOWN_SECONDS: Final = 0.5
DELEGATED_STAGES_PER_AGENT_MAX: Final = 256
DELEGATED_UPSTREAMS_MAX: Final = 16
DELEGATED_PEERS_MAX: Final = 1
DELEGATED_CANDIDATES_MAX: Final = 1_024
DELEGATED_REPORTS_KEPT_MAX: Final = 4_096
AGENT_BACKLOG_STAGES: Final = 64
AGENT_BACKLOG_FACTOR: Final = 8
AGENT_BACKLOG_SECONDS: Final = 0.05
READY_LANES_KEPT: Final = 1_000
AGENT_AHEAD_STAGES: Final = 64
AGENT_CHEAP_NANOS: Final = 1_000_000
AGENT_BRIEF_RUNS: Final = 16
AGENT_BRIEF_INPUTS_MAX: Final = 16
AGENT_BRIEF_NANOS_MAX: Final = 500_000_000
AGENT_FETCHES_AHEAD: Final = 4
AGENT_FETCHED_BYTES_MAX: Final = 256 * 1024 * 1024
LINKS_MEASURED_MAX: Final = 64
LINK_SMALL_BYTES_MAX: Final = 64 * 1024
LINK_LATENCY_SECONDS_MAX: Final = 600.0
LINK_KEPT_SECONDS: Final = 300.0
AGENT_SESSIONS_MAX: Final = 32
AGENT_STOP_SECONDS: Final = 5.0
AGENT_PROFILE_SECONDS: Final = 3.0
"""How long an agent measures its targets at its first start on a machine, in all."""
AGENT_GRAPHS_SECONDS: Final = 1.5
"""How long it reads graphs of models that it has not read before, at one start."""
AGENT_PROFILE_WAIT_SECONDS: Final = 30.0
"""How long it waits for another agent of the machine that measures, and before it goes on with what there was no time for."""
AGENT_PROFILE_ROUNDS: Final = 4
"""How often it measures and reads at most, where a busy machine leaves no time for all of it at once."""
INPUT_PATIENCE_SECONDS: Final = 2.0
FIGURES_PER_STAGE_MAX: Final = 16
TRACE_LINES_MAX: Final = 20
JOURNAL_RESERVED_BYTES: Final = 1024 * 1024
JOURNAL_SLOW_SECONDS: Final = 1.0
"""A commit that takes longer is told of in the orchestrator's log."""
LOOP_SLOW_SECONDS: Final = 1.0
"""Likewise, where its event loop does not turn for longer."""
SNAPSHOT_FACTS: Final = 20_000
SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
SNAPSHOT_PAUSES: Final = 4.0
SNAPSHOT_SECONDS_MAX: Final = 600.0
SNAPSHOT_RETRY_SECONDS: Final = 60.0
JOBS_DROPPED_TOGETHER: Final = 100
EVENTS_PER_READ_MAX: Final = 1_000
EVENTS_BYTES_PER_MESSAGE: Final = 1024 * 1024
EVENTS_IN_MEMORY_BYTES_MAX: Final = 32 * 1024 * 1024
UPLOAD_KEPT_SECONDS: Final = 3600.0

# A cluster on one machine
CLUSTER_NODES_MAX: Final = 64
NODE_SLOTS_MAX: Final = 1_024
FLEET_NODES_MAX: Final = 1_000
"""Nodes of a fleet that is planned for, none of which needs to run."""
FLEET_UPLINKS_MAX: Final = 100
"""Up-links of such a fleet that its nodes share."""
FLEET_SPEED_MAX: Final = 1e6
"""How many times as fast as the reference machine a target may be said to be."""
FLEET_WATTS_MAX: Final = 1e9
"""What a target may be said to take."""
FLEET_JOULES_MAX: Final = 1e9
"""What moving a megabyte over a link may be said to take."""
FLEET_PRICE_MAX: Final = 1e12
"""What an hour of a node, or a gigabyte on a link, may be said to cost, in any currency. Beyond, sums of prices are no numbers any more."""
FLEET_MBIT_MIN: Final = 1e-4
FLEET_MBIT_MAX: Final = 1e9
"""Of a link or an up-link, in Mbit/s: from what the slowest radios give to far more than there is. Beyond, seconds are too many or too few to add up."""

# Plans
PLAN_RENEW_SHARE: Final = 0.02
"""Of what is left of a job: a new plan that saves less than this share does not replace the old one."""
PLAN_OTHER_TIER_SECONDS: Final = 0.001
"""What it counts that a stage stands on another tier than its kind usually does: of equal places its own is taken."""
PLAN_SOFT_SECONDS: Final = 3_600.0
"""How much later a stage may end where its plan has it, if it is written as a preference: as long as that node is there."""
PLAN_TRY_ITERATIONS_MIN: Final = 400
"""Of local search for each of the plans among which an objective in order chooses, however little time there is."""
PLAN_LEAST_EFFORT_MIN: Final = 0.1
"""CP-SAT's deterministic time for the plan that takes least in time, about seconds, likewise."""
PLAN_PROVEN_STAGES_MAX: Final = 16
"""Stages of a job whose plan CP-SAT looks for as a whole, and proves; of larger ones it looks at windows. What takes no time and has one place only does not count."""
PLAN_SETTLED_CHOICES_MAX: Final = 20_000
"""Stages times places up to which CP-SAT is asked for any plan, or why there is none, if none is found, or none that ends in time."""
PLAN_EXPLAINED_EFFORT_MAX: Final = 15.0
"""CP-SAT's deterministic time for all that is asked to explain why there is no plan, about seconds; what is left then is told untried."""
STREAM_RATE_MAX: Final = 1e6
"""Chunks a second that a stream may be said to have."""
SLO_TOKEN_SHARE: Final = 0.95
"""Of rounds in which the first token, and each token, of an answer come as soon as is promised."""
SLO_DEADLINE_SHARE: Final = 0.99
"""Of rounds that end by the deadline, where jobs come again and again: those that do not fail."""
PLAN_LOAD_MAX: Final = 0.9
"""The share of a period for which a plan keeps a slot or a link busy: seconds that are predicted are off, and full queues grow."""
PLAN_DEVIATION: Final = 0.2
"""Standard deviation of a run's seconds as a share of them, where none was measured."""
PLAN_ROUNDS: Final = 300
"""Rounds of a job that comes again and again that are simulated: 240 of them count, so that twelve are above the 95th percentile."""
PLAN_LIVE_STAGES_MIN: Final = 3
PLAN_LIVE_STAGES_MAX: Final = 1_000
"""Stages of a job that is planned while it runs."""
PLAN_LIVE_CELLS_MAX: Final = 50_000
"""Stages times nodes of a job that is planned while it runs."""
PLAN_LIVE_WORK_SECONDS_MIN: Final = 1.0
"""What the stages of a job are expected to take in all, if a plan is to be worth its making."""
PLAN_LIVE_BUDGET_SECONDS: Final = 0.05
"""How long local search may look, for a job that runs."""
PLAN_EVERY_SECONDS: Final = 1.0
"""A job is planned no more often, and after a restart no earlier."""
PLAN_FIRST_WAITS_SECONDS: Final = 0.25
"""For so long a new job's stages do not go ahead of their upstreams, nor stand in line for a slot, so that its plan may come first."""
PLAN_FIRST_WORK_SECONDS_MIN: Final = 20 * PLAN_FIRST_WAITS_SECONDS
"""What the stages of such a job are expected to take in all. Of a shorter one the wait would be more than a plan may save."""
PLAN_RESUMED_WAITS_SECONDS: Final = 2.0
"""For so long at most stages of a job that was taken up again wait for its plan, if that may choose their variants: its planner is started anew as well."""
PLAN_RESUMED_WORK_SECONDS_MIN: Final = 20 * PLAN_RESUMED_WAITS_SECONDS
"""What the stages of such a job are expected to take in all, as for a new one."""
PLAN_KNOWN_SHARE: Final = 0.5
"""Of the places of a job's kinds, weighed by their stages: where less is known of how long they run there, no plan is worth more than a look at each stage."""
PLAN_ORDER_SECONDS_MAX: Final = 60.0
"""By so much a stage may come before, or behind, what its node was given at the same time, for the order of its plan."""
PLAN_ANSWER_SECONDS: Final = 30.0
"""After which a plan that was asked for is taken to be lost, and a planner that is at it to hang: it is killed."""
PLAN_AGAIN_SECONDS: Final = 2.0
"""So long after there was no planner to make a plan it is asked for again."""
PLAN_SECONDS_MAX: Final = 1e8
"""A plan that has a stage start or end further off is none: three years."""
PLAN_MOVE_SECONDS: Final = 0.01
"""What it counts that a stage which waits is planned elsewhere than before."""
PLAN_DRIFT_SECONDS: Final = 0.1
PLAN_DRIFT_SHARE: Final = 0.1
"""Of a plan's makespan: a stage that ends earlier or later than planned by both is a reason to plan anew."""
PLAN_DEADLINE_SHARE: Final = 0.9
"""Of what is left of a job's deadline: later than that a plan of a running job is not to end, for seconds that are predicted are off."""
PLAN_BETTER_SHARE: Final = 0.8
"""Of the same: better variants than those of the plan before are taken where all ends by then. Between both nothing changes."""
PLAN_LOOK_SHARE: Final = 0.1
"""Of the same: when this has passed a job that may yet choose variants is planned anew, whatever went as planned."""
PLAN_RAISES_MAX: Final = 24
"""Single stages of a plan in lesser variants of which it is tried whether a better one ends in time as well."""
PLAN_ROUNDS_SECONDS: Final = 10.0
"""So old the plan of jobs that come again and again is when the next of them has it renewed; what else runs is taken to go on so long."""
PLAN_ROUNDS_STAGES_MAX: Final = 100
PLAN_ROUNDS_CELLS_MAX: Final = 2_000
"""Stages of a job that is planned for its period while such jobs run, and these, as often as they have variants, times nodes: some seconds of a processor."""
PLAN_SERIES_MAX: Final = 100
"""Constellations that come again and again whose plans are kept while none of their jobs runs."""
PLAN_TAKEN_MAX: Final = 0.95
"""The share of a node's time that others may take at most, as plans for a period count it: more would be none left."""
PLAN_ASIDE_SECONDS: Final = 0.2
PLAN_ASIDE_SHARE: Final = 0.25
"""Of a plan's makespan: a stage stands aside of its plan where it would end later than another place ends it, and than planned, by both together."""
PLANS_ASKED_MAX: Final = 8
"""Jobs of which a plan is asked for at one time; the planner makes one after the other, and the others' would be old."""
PLANS_TOLD_MAX: Final = 100
"""Ended jobs of which it is known what their plans had predicted, and which stages stood where by them."""
PLANNER_READY_SECONDS: Final = 600.0
"""Within which a planner's process says that it is ready, or is killed: the first in a checkout compiles itself, behind all else."""
PLANNER_AGAIN_FIRST_SECONDS: Final = 1.0
PLANNER_AGAIN_LAST_SECONDS: Final = 300.0
"""After a planner's process has died or was killed another is started this much later, twice as much each time in a row."""
PLANNER_FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of what a planner's process is told or tells at once; one that announces more talks nonsense."""
CLUSTER_READY_SECONDS: Final = 120.0
STOP_GRACE_SECONDS: Final = 10.0
DOWN_SECONDS: Final = 45.0
ORCHESTRATOR_READY_SECONDS: Final = 30.0
QUICK_DEATHS_MAX: Final = 5
QUICK_DEATH_SECONDS: Final = 5.0
START_AGAIN_SECONDS: Final = 2.0
RESTART_FIRST_SECONDS: Final = 0.05
RESTART_LAST_SECONDS: Final = 2.0
RESTART_FOLDER_SECONDS: Final = 10.0
RAY_OBJECT_STORE_BYTES: Final = 80 * 1024 * 1024
RAY_PORT_SECONDS: Final = 60
RAY_STARTS_MAX: Final = 2

# Trials with faults
TRIAL_SECONDS_MAX: Final = 300.0
FAULTS_ARMED_MAX: Final = 1_000
FAULTS_PLANNED_MAX: Final = 1_000
FAULTS_QUIET_SECONDS: Final = 20.0
FAULTS_RECOVERED_SECONDS: Final = 60.0

# Clients
RPC_DEADLINE_SECONDS: Final = 30.0
HEALTH_SECONDS: Final = 2.0
"""How long a client asks an orchestrator that did not answer whether it is there at all."""
LINK_SILENT_SECONDS: Final = 15.0
"""How long a client's connection may leave a ping without an answer: after KEEPALIVE_SECONDS, still within RPC_DEADLINE_SECONDS,
and longer than a loaded machine keeps a process from running as a rule."""
CONNECT_SECONDS: Final = 5.0
ORCHESTRATOR_RESTART_SECONDS: Final = 120.0
TRANSFERS_AT_ONCE_MAX: Final = 8

# Models
MODEL_FILES_MAX: Final = 256
MODEL_BYTES_MAX: Final = 4 * 1024 * 1024 * 1024
MODEL_DOWNLOAD_SECONDS: Final = 1800.0
MODEL_SESSIONS_BYTES_MAX: Final = 2 * 1024 * 1024 * 1024
MODEL_RECENCY_SECONDS: Final = 60.0

# Text
EMBEDDED_TOKENS_MAX: Final = 256
RETRIEVED_PASSAGES_MAX: Final = 100
ANSWER_SENTENCES_MAX: Final = 64
ANSWER_CHARACTERS_MAX: Final = 600

# Language
LANGUAGE_TOKENS_MAX: Final = 32_768
LANGUAGE_SECONDS_MAX: Final = 3_600.0
LANGUAGE_PREFILL_TOKENS: Final = 256
LANGUAGE_STOPS_MAX: Final = 16
LANGUAGE_STOP_CHARACTERS_MAX: Final = 200
LANGUAGE_VOCABULARY_PADDING: Final = 128
CHAT_CHARACTERS_MAX: Final = 4_000_000
ENDPOINT_CONNECT_SECONDS: Final = 5.0
ENDPOINT_FIRST_SECONDS: Final = 60.0
ENDPOINT_GAP_SECONDS: Final = 30.0
ENDPOINT_TOTAL_SECONDS: Final = 600.0
ENDPOINT_RETRIES: Final = 2
ENDPOINT_BACKOFF_FIRST_SECONDS: Final = 0.5
ENDPOINT_BACKOFF_LAST_SECONDS: Final = 20.0
ENDPOINT_RESPONSE_BYTES_MAX: Final = 32 * 1024 * 1024
ENDPOINT_LINE_BYTES_MAX: Final = 1024 * 1024
ENDPOINT_SAID_CHARACTERS_MAX: Final = 300
