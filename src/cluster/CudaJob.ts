/**
 * A job over machines: the same program on a number of GPUs, each a rank, restarted as a whole from its last checkpoint when any rank fails.
 *
 * Built on Effect's cluster. Ranks are entities that hold a GPU of their runner. A coordinator, an entity too, brings them together by RPC, listens to
 * their heartbeats and leads the job through epochs: every attempt to run it has a larger number, and what an earlier one still says is refused.
 * Only small values travel by RPC. The data of the ranks go from GPU to GPU, by NCCL.
 *
 * @since 0.1.0
 */
import type {
  AlreadyProcessingMessage,
  EntityNotAssignedToRunner,
  MailboxFull,
  PersistenceError
} from "effect/cluster/ClusterError"
import * as EntityAddress from "effect/cluster/EntityAddress"
import * as EntityId from "effect/cluster/EntityId"
import * as Envelope from "effect/cluster/Envelope"
import * as Message from "effect/cluster/Message"
import * as MessageStorage from "effect/cluster/MessageStorage"
import * as Sharding from "effect/cluster/Sharding"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as Activity from "effect/workflow/Activity"
import { coordinatorLayer } from "./internal/coordinator.ts"
import type {
  CoordinatorEntity,
  CudaJobFailed,
  EpochFailure,
  JobStatus,
  RankEntity,
  Settings
} from "./internal/protocol.ts"
import * as Protocol from "./internal/protocol.ts"
import type { Membership } from "./internal/rank.ts"
import { rankLayer } from "./internal/rank.ts"
import type { JobDevices } from "./JobDevices.ts"
import type { JobStore } from "./JobStore.ts"

export {
  /**
   * The failure of a job whose restarts are used up. `reason` says what ended its last epoch: `ProgramFailed`, `RankLost`, `RankUnplaced` or
   * `CheckpointNotSaved`.
   *
   * @category errors
   * @since 0.1.0
   */
  CudaJobFailed,
  /**
   * The answer to a message of an epoch that is over, or of an incarnation that has been replaced. Programs never see it: they are interrupted.
   *
   * @category errors
   * @since 0.1.0
   */
  StaleEpoch
} from "./internal/protocol.ts"

export type {
  /**
   * The entity of a job's coordinator, with its protocol.
   *
   * @category models
   * @since 0.1.0
   */
  CoordinatorEntity,
  /**
   * The entity of a job's ranks, with its protocol.
   *
   * @category models
   * @since 0.1.0
   */
  RankEntity,
  /**
   * The options of a job with every default filled in. Durations in milliseconds.
   *
   * @category models
   * @since 0.1.0
   */
  Settings
} from "./internal/protocol.ts"

/**
 * A schema without services, as the values of a job need it.
 *
 * @category models
 * @since 0.1.0
 */
export type Values<A> = Schema.Codec<A, unknown>

/**
 * What ended an epoch.
 *
 * @category models
 * @since 0.1.0
 */
export type RankFailure = EpochFailure

/**
 * Where a job stands: its epoch, the step of its last complete checkpoint, and where its ranks are.
 *
 * @category models
 * @since 0.1.0
 */
export type Status = typeof JobStatus.Type

/**
 * What `run` fails with: the job, or the cluster.
 *
 * @category models
 * @since 0.1.0
 */
export type RunError = CudaJobFailed | ClusterError

/**
 * What clients of Effect's cluster fail with.
 *
 * @category models
 * @since 0.1.0
 */
export type ClusterError = MailboxFull | AlreadyProcessingMessage | PersistenceError | EntityNotAssignedToRunner

/**
 * The definition of a job. All runners and clients need the same one.
 *
 * @category models
 * @since 0.1.0
 */
export interface CudaJob<in out Payload, in out Checkpoint, in out Success> {
  readonly name: string
  readonly size: number
  readonly payload: Values<Payload>
  readonly checkpoint: Values<Checkpoint>
  readonly success: Values<Success>
  readonly settings: Settings
  readonly restart: Schedule.Schedule<unknown, RankFailure>
  /** The entities of the coordinator and of the ranks. */
  readonly entities: { readonly coordinator: CoordinatorEntity; readonly rank: RankEntity }
}

/**
 * Options for defining a job.
 *
 * @category models
 * @since 0.1.0
 */
export interface JobOptions<Payload, Checkpoint, Success> {
  /** The number of ranks. */
  readonly size: number
  /** What every rank is given. */
  readonly payload: Values<Payload>
  /** What a rank gives at a checkpoint, and gets back after a restart. Small: a step, a seed, the name of a file. */
  readonly checkpoint: Values<Checkpoint>
  /** What a rank ends with. */
  readonly success: Values<Success>
  /**
   * The shard groups whose runners may hold ranks, tried in turn. Default: `["default"]`.
   *
   * A group with a single runner never gives its ranks to another runner. In a group of several, a runner that joins takes shards over, and a job with a
   * rank on one of these restarts from its last checkpoint.
   */
  readonly groups?: readonly [string, ...ReadonlyArray<string>] | undefined
  /** How often a rank says that it is alive. Default: 1 second. */
  readonly heartbeat?: Duration.Input | undefined
  /** How long a rank may be silent before it counts as lost. Default: 10 seconds. */
  readonly timeout?: Duration.Input | undefined
  /** How long a rank works without an answer from its coordinator; at most `timeout`. Default: 80 % of `timeout`. */
  readonly lease?: Duration.Input | undefined
  /** How long to look for a free device for each rank. Default: 1 minute. */
  readonly placement?: Duration.Input | undefined
  /** How long a rank may go without a checkpoint or a `heartbeat` of its program. Default: forever. */
  readonly stall?: Duration.Input | undefined
  /** When to restart, and how often. Default: five times, after 1, 2, 4, 8 and 16 seconds. */
  readonly restart?: Schedule.Schedule<unknown, RankFailure> | undefined
}

/**
 * Defines a job.
 *
 * **Gotchas**
 *
 * Throws a `RangeError` for options that make no sense: a size that is not a positive integer, a lease longer than the timeout or shorter than two
 * heartbeats.
 *
 * **Example** (A job of two ranks)
 *
 * ```ts
 * import { CudaJob } from "effect-cuda/cluster"
 * import * as Schema from "effect/Schema"
 *
 * export const train = CudaJob.make("train", {
 *   size: 2,
 *   payload: Schema.Struct({ steps: Schema.Int }),
 *   checkpoint: Schema.Struct({ weights: Schema.String }), // the name of a file
 *   success: Schema.Number
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <Payload, Checkpoint, Success>(
  name: string,
  options: JobOptions<Payload, Checkpoint, Success>
): CudaJob<Payload, Checkpoint, Success> => {
  const settings = settingsOf(name, options)
  return {
    name,
    size: options.size,
    payload: options.payload,
    checkpoint: options.checkpoint,
    success: options.success,
    settings,
    restart: options.restart ?? defaultRestart,
    entities: { coordinator: Protocol.coordinatorEntity(name), rank: Protocol.rankEntity(name, settings.groups) }
  }
}

const defaultRestart = Schedule.exponential("1 second").pipe(Schedule.upTo({ times: 5 }))

const settingsOf = <Payload, Checkpoint, Success>(
  name: string,
  options: JobOptions<Payload, Checkpoint, Success>
): Settings => {
  const heartbeat = Duration.toMillis(options.heartbeat ?? "1 second")
  const timeout = Duration.toMillis(options.timeout ?? "10 seconds")
  const lease = options.lease === undefined ? 0.8 * timeout : Duration.toMillis(options.lease)
  if (!Number.isInteger(options.size) || options.size < 1) {
    throw new RangeError(`CudaJob "${name}": size must be a positive integer, not ${options.size}`)
  }
  if (!(heartbeat > 0 && 2 * heartbeat <= lease && lease <= timeout)) {
    throw new RangeError(
      `CudaJob "${name}": needs 2 × heartbeat (${heartbeat} ms) ≤ lease (${lease} ms) ≤ timeout (${timeout} ms)`
    )
  }
  return {
    name,
    size: options.size,
    groups: options.groups ?? ["default"],
    heartbeat,
    timeout,
    lease,
    placement: Duration.toMillis(options.placement ?? "1 minute"),
    stall: Duration.toMillis(options.stall ?? Duration.infinity)
  }
}

/**
 * What the program of a rank is given.
 *
 * @category models
 * @since 0.1.0
 */
export interface Rank<out Payload, in out Checkpoint> {
  /** The id that the job was started with. */
  readonly job: string
  /** 0 to `size - 1`. */
  readonly rank: number
  readonly size: number
  /** Which attempt this is. Larger than the number of every earlier one. */
  readonly epoch: number
  /** Index of the GPU that the rank holds until its scope closes. */
  readonly device: number
  readonly payload: Payload
  /** The last complete checkpoint: what this rank gave for it, and what every rank gave. */
  readonly restored: Option.Option<{
    readonly step: number
    readonly value: Checkpoint
    readonly values: ReadonlyArray<Checkpoint>
  }>
  /**
   * Gives this rank's value for a step. Returns once every rank has given its value for this step and all are stored, so it is a barrier too. A step not
   * greater than that of the last complete checkpoint changes nothing. A rank that has ended gives no value, so no later step is complete.
   */
  readonly checkpoint: (step: number, value: Checkpoint) => Effect.Effect<void>
  /**
   * Gives every rank the value of rank 0, which alone runs the effect. Calls with one key are matched in the order in which each rank makes them.
   */
  readonly broadcast: <A, E, R>(
    key: string,
    schema: Values<A>,
    value: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, E, R>
  /** Gives every rank the values of all ranks, in the order of the ranks. Calls are matched as for `broadcast`. */
  readonly gather: <A>(key: string, schema: Values<A>, value: A) => Effect.Effect<ReadonlyArray<A>>
  /** Returns once every rank has called it. Calls are matched as for `broadcast`. */
  readonly barrier: (key: string) => Effect.Effect<void>
  /** Says that the program makes progress, for jobs with the option `stall`. */
  readonly heartbeat: Effect.Effect<void>
}

/**
 * Serves a job on a runner: with the program of its ranks, and as a possible home of its coordinators.
 *
 * **Details**
 *
 * Every rank runs the program in a scope of its own, in which the rank holds a device of `JobDevices`. When any rank fails, dies or is lost, all are
 * interrupted, their scopes close, and the program runs again with the next epoch and the last complete checkpoint.
 *
 * A program sees nothing of the cluster's failures. If its epoch is over, or its coordinator has not answered for the time of the lease, it is interrupted.
 *
 * **Gotchas**
 *
 * Close what can block in a finalizer of the scope: abort a communicator rather than destroy it. The next epoch waits until every rank has closed its
 * scope, but not longer than for the time of the lease. A rank that takes longer keeps its device meanwhile.
 *
 * Work that blocks the event loop for the time of the lease loses the rank.
 *
 * **Example** (A program with a checkpoint after every hundred steps)
 *
 * ```ts
 * import { CudaJob } from "effect-cuda/cluster"
 * import * as Effect from "effect/Effect"
 * import * as Option from "effect/Option"
 * import * as Schema from "effect/Schema"
 *
 * const sum = CudaJob.make("sum", { size: 2, payload: Schema.Int, checkpoint: Schema.Int, success: Schema.Int })
 *
 * export const layer = CudaJob.toLayer(sum, (rank) =>
 *   Effect.gen(function*() {
 *     let [step, total] = Option.match(rank.restored, {
 *       onNone: () => [0, 0],
 *       onSome: ({ step, value }) => [step, value]
 *     })
 *     while (step < rank.payload) {
 *       total += step++
 *       if (step % 100 === 0) yield* rank.checkpoint(step, total)
 *     }
 *     return total
 *   }))
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const toLayer = <Payload, Checkpoint, Success, E, R>(
  job: CudaJob<Payload, Checkpoint, Success>,
  program: (rank: Rank<Payload, Checkpoint>) => Effect.Effect<Success, E, R>
): Layer.Layer<never, never, Exclude<R, Scope.Scope> | JobDevices | JobStore | Sharding.Sharding> => {
  const { entities, restart, settings } = job
  const encode = encodeWith(job.success)
  const ranks = rankLayer(settings, entities.rank, entities.coordinator, (membership) =>
    rankOf(job, membership).pipe(
      Effect.flatMap((rank) => Effect.scoped(program(rank))),
      Effect.flatMap(encode)
    ))
  return Layer.merge(ranks, coordinatorLayer(settings, restart, entities.coordinator, entities.rank))
}

const encodeWith = <A>(schema: Values<A>) => {
  const encode = Schema.encodeEffect(Schema.fromJsonString(Schema.toCodecJson(schema)))
  return (value: A) => Effect.orDie(encode(value))
}

const decodeWith = <A>(schema: Values<A>) => {
  const decode = Schema.decodeEffect(Schema.fromJsonString(Schema.toCodecJson(schema)))
  return (text: string) => Effect.orDie(decode(text))
}

const rankOf = Effect.fnUntraced(function*<Payload, Checkpoint>(
  { checkpoint, payload, size }: Pick<CudaJob<Payload, Checkpoint, unknown>, "checkpoint" | "payload" | "size">,
  membership: Membership
) {
  const { device, epoch, heartbeat, job, rank, restored, share } = membership
  const encode = encodeWith(checkpoint)
  const counts = new Map<string, number>()
  // The n-th call with a key meets the n-th call of the other ranks.
  const numbered = (key: string) => {
    const count = counts.get(key) ?? 0
    counts.set(key, count + 1)
    return `${key}#${count}`
  }
  const broadcast: Rank<Payload, Checkpoint>["broadcast"] = (key, schema, value) =>
    Effect.suspend(() => {
      const name = numbered(`broadcast/${key}`)
      return rank === 0
        ? Effect.tap(value, (value) => Effect.flatMap(encodeWith(schema)(value), (text) => share(name, "first", text)))
        : Effect.flatMap(share(name, "first"), ([text = ""]) => decodeWith(schema)(text))
    })
  const gather: Rank<Payload, Checkpoint>["gather"] = (key, schema, value) =>
    Effect.suspend(() => {
      const name = numbered(`gather/${key}`)
      return encodeWith(schema)(value).pipe(
        Effect.flatMap((text) => share(name, "all", text)),
        Effect.flatMap((texts) => Effect.forEach(texts, decodeWith(schema)))
      )
    })
  const values = restored === undefined ? undefined : yield* Effect.forEach(restored.values, decodeWith(checkpoint))
  const value = values?.[rank]
  const self: Rank<Payload, Checkpoint> = {
    job,
    rank,
    size,
    epoch,
    device,
    payload: yield* decodeWith(payload)(membership.payload),
    restored: restored === undefined || values === undefined || value === undefined
      ? Option.none()
      : Option.some({ step: restored.step, value, values }),
    checkpoint: (step, value) => Effect.flatMap(encode(value), (text) => membership.checkpoint(step, text)),
    broadcast,
    gather,
    barrier: (key) => Effect.asVoid(gather(`barrier/${key}`, Schema.Null, null)),
    heartbeat
  }
  return self
})

/**
 * Runs a job to its end, and returns the result of each rank.
 *
 * **Details**
 *
 * The id names this run of the job for ever. Running it again joins the run that is at work, or returns its result; the payload of the first call
 * counts. The job does not need its client: if the client's process dies, the job goes on. If this effect is interrupted, the job is, and its ranks
 * have been stopped when the interruption ends or soon after.
 *
 * Fails with `CudaJobFailed` when the restarts are used up.
 *
 * **Gotchas**
 *
 * Ids have up to 150 characters. A longer one dies with a `RangeError`.
 *
 * **Example** (Run, or join the run)
 *
 * ```ts
 * import { CudaJob } from "effect-cuda/cluster"
 * import * as Effect from "effect/Effect"
 * import * as Schema from "effect/Schema"
 *
 * const sum = CudaJob.make("sum", { size: 2, payload: Schema.Int, checkpoint: Schema.Int, success: Schema.Int })
 *
 * export const program = CudaJob.run(sum, { id: "sum-2026-01", payload: 1_000 }).pipe(
 *   Effect.catchReason("CudaJobFailed", "RankUnplaced", () => Effect.succeed([]))
 * )
 * ```
 *
 * @category execution
 * @since 0.1.0
 */
export const run = <Payload, Checkpoint, Success>(
  job: CudaJob<Payload, Checkpoint, Success>,
  options: { readonly id: string; readonly payload: Payload }
): Effect.Effect<ReadonlyArray<Success>, RunError, Sharding.Sharding> =>
  Effect.gen(function*() {
    const coordinator = yield* coordinatorOf(job, options.id)
    const payload = yield* encodeWith(job.payload)(options.payload)
    const results = yield* coordinator.Run({ payload })
    return yield* Effect.forEach(results, decodeWith(job.success))
  })

const coordinatorOf = (job: AnyJob, id: string) =>
  id.length === 0 || id.length > 150
    ? Effect.die(new RangeError(`Job "${job.name}": the id must have 1 to 150 characters`))
    : Effect.map(job.entities.coordinator.client, (client) => client(id))

/**
 * Any job, whatever its values.
 *
 * @category models
 * @since 0.1.0
 */
export type AnyJob = Pick<CudaJob<unknown, unknown, unknown>, "name" | "entities">

/**
 * Reads where a job stands, from its coordinator. Epoch 0 if none is at work.
 *
 * @category execution
 * @since 0.1.0
 */
export const status = (
  job: AnyJob,
  id: string
): Effect.Effect<Status, ClusterError, Sharding.Sharding> =>
  Effect.flatMap(coordinatorOf(job, id), (coordinator) => coordinator.Status())

/**
 * Interrupts a run from any client of the cluster. Its ranks stop, and `run` ends with an interruption, now and for ever for this id. Nothing happens
 * if there is no such run or it has ended.
 *
 * @category execution
 * @since 0.1.0
 */
export const interrupt = (
  job: AnyJob,
  id: string
): Effect.Effect<void, ClusterError, Sharding.Sharding | MessageStorage.MessageStorage> =>
  Effect.gen(function*() {
    const storage = yield* MessageStorage.MessageStorage
    const sharding = yield* Sharding.Sharding
    const { coordinator } = job.entities
    const entityId = EntityId.make(id)
    const address = EntityAddress.make({
      entityType: coordinator.type,
      entityId,
      shardId: yield* coordinator.getShardId(entityId)
    })
    const requestId = yield* storage.requestIdForPrimaryKey({ address, tag: "Run", id: "" })
    const rpc = coordinator.protocol.requests.get("Run")
    if (Option.isNone(requestId) || rpc === undefined) return
    const envelope = new Envelope.Interrupt({
      id: yield* sharding.getSnowflake,
      address,
      requestId: requestId.value
    })
    yield* sharding.sendOutgoing(new Message.OutgoingEnvelope({ rpc, envelope }), false)
  })

/**
 * Runs a job as a step of a workflow.
 *
 * **Details**
 *
 * The id of the run is that of the workflow's execution, followed by the name of the job and `key`. So a workflow that is replayed joins the run that
 * it has begun, on whichever machine it is replayed.
 *
 * **Gotchas**
 *
 * A failure of the cluster itself (`ClusterError`) dies: the workflow is not the place to handle it.
 *
 * @category execution
 * @since 0.1.0
 */
export const activity = <Payload, Checkpoint, Success>(
  job: CudaJob<Payload, Checkpoint, Success>,
  options: { readonly id: string; readonly payload: Payload }
) =>
  Activity.make({
    name: `CudaJob/${job.name}/${options.id}`,
    success: Schema.Array(job.success),
    error: Protocol.CudaJobFailed,
    execute: Effect.catchTag(run(job, options), clusterErrors, Effect.die)
  })

const clusterErrors = [
  "MailboxFull",
  "AlreadyProcessingMessage",
  "PersistenceError",
  "EntityNotAssignedToRunner"
] as const

/**
 * Joins the ranks of an epoch into a communicator: rank 0 makes the id, all ranks get it and join with it. For `CudaNccl`, or any other library that
 * meets by an id.
 *
 * **Details**
 *
 * The id belongs to one epoch. A rank of an earlier epoch can never join a communicator of a later one.
 *
 * **Example** (With any library that meets by an id)
 *
 * ```ts
 * import { CudaJob } from "effect-cuda/cluster"
 * import type * as Effect from "effect/Effect"
 * import type * as Scope from "effect/Scope"
 *
 * declare const uniqueId: Effect.Effect<Uint8Array>
 * declare const join: (options: {
 *   readonly id: Uint8Array
 *   readonly rank: number
 *   readonly size: number
 *   readonly device: number
 * }) => Effect.Effect<{ readonly rank: number }, never, Scope.Scope>
 *
 * export const communicator = (rank: CudaJob.Rank<unknown, unknown>) => CudaJob.rendezvous(rank, { id: uniqueId, join })
 * ```
 *
 * @category ranks
 * @since 0.1.0
 */
export const rendezvous = <A, E, R, E2, R2>(
  rank: Pick<Rank<unknown, never>, "rank" | "size" | "device" | "broadcast">,
  options: {
    readonly id: Effect.Effect<Uint8Array, E, R>
    readonly join: (options: {
      readonly id: Uint8Array
      readonly rank: number
      readonly size: number
      readonly device: number
    }) => Effect.Effect<A, E2, R2>
    /** Tells several communicators apart whose joining may overlap. Default: `"communicator"`. */
    readonly key?: string | undefined
  }
): Effect.Effect<A, E | E2, R | R2> =>
  Effect.flatMap(
    rank.broadcast(options.key ?? "communicator", Schema.Uint8Array, options.id),
    (id) => options.join({ id, rank: rank.rank, size: rank.size, device: rank.device })
  )
