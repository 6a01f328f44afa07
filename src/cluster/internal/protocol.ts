/**
 * What coordinators and ranks say to each other. Every message of a rank names its epoch and its incarnation.
 *
 * Values of the program travel as JSON text, encoded with the schemas of the job where they are made and decoded where they are used, so that one
 * protocol serves all jobs.
 */
import * as ClusterSchema from "effect/cluster/ClusterSchema"
import * as Entity from "effect/cluster/Entity"
import * as Rpc from "effect/rpc/Rpc"
import * as RpcGroup from "effect/rpc/RpcGroup"
import * as Schema from "effect/Schema"

/** Refused: the message came from an incarnation of a rank that has been replaced, or from an epoch that is over. */
export class StaleEpoch extends Schema.TaggedError<StaleEpoch>()("StaleEpoch", {
  job: Schema.String,
  epoch: Schema.Int,
  /** The epoch at work where the message was refused, if there is one. */
  current: Schema.optionalKey(Schema.Int)
}) {
  override get message(): string {
    const now = this.current === undefined ? "no epoch is at work here" : `the current epoch is ${this.current}`
    return `A message of epoch ${this.epoch} of job "${this.job}" was refused: ${now}`
  }
}

/** The program of a rank failed, died, or interrupted itself. */
export const ProgramFailed = Schema.TaggedStruct("ProgramFailed", {
  rank: Schema.Int,
  epoch: Schema.Int,
  /** The `_tag` or name of what it failed with. */
  error: Schema.String,
  message: Schema.String
})

/** A rank stopped answering, was started anew elsewhere, or lost its coordinator. */
export const RankLost = Schema.TaggedStruct("RankLost", { rank: Schema.Int, epoch: Schema.Int, message: Schema.String })

/** No runner had a free device for a rank. */
export const RankUnplaced = Schema.TaggedStruct("RankUnplaced", {
  rank: Schema.Int,
  epoch: Schema.Int,
  message: Schema.String
})

/** A complete checkpoint could not be stored. */
export const CheckpointNotSaved = Schema.TaggedStruct("CheckpointNotSaved", {
  step: Schema.Int,
  epoch: Schema.Int,
  message: Schema.String
})

export const EpochFailure = Schema.Union([ProgramFailed, RankLost, RankUnplaced, CheckpointNotSaved])
export type EpochFailure = typeof EpochFailure.Type

/** The job failed, and its restarts are used up. */
export class CudaJobFailed extends Schema.TaggedError<CudaJobFailed>()("CudaJobFailed", {
  job: Schema.String,
  id: Schema.String,
  /** How often the job was restarted before this failure, by this coordinator. */
  restarts: Schema.Int,
  reason: EpochFailure
}) {
  override get message(): string {
    const { epoch, message } = this.reason
    const who = "rank" in this.reason ? `rank ${this.reason.rank}` : `step ${this.reason.step}`
    return `Job "${this.job}" (${this.id}) failed in epoch ${epoch} after ${this.restarts} restarts, ${who}: ${message}`
  }
}

/** Where a job stands. */
export const JobStatus = Schema.Struct({
  /** The current epoch. 0 if no coordinator is at work. */
  epoch: Schema.Int,
  /** The step of the last complete checkpoint. */
  step: Schema.optionalKey(Schema.Int),
  ranks: Schema.Array(Schema.Struct({
    rank: Schema.Int,
    device: Schema.Int,
    /** Address of the runner. */
    runner: Schema.String
  }))
})

/** Who a message comes from. */
const sender = { epoch: Schema.Int, rank: Schema.Int, incarnation: Schema.String }

const CoordinatorProtocol = RpcGroup.make(
  // The job itself. Persisted: it is delivered again to the next owner when the coordinator's runner dies.
  Rpc.make("Run", {
    payload: { payload: Schema.String },
    primaryKey: () => "",
    success: Schema.Array(Schema.String),
    error: CudaJobFailed
  })
    .annotate(ClusterSchema.Persisted, true)
    .annotate(ClusterSchema.InterruptOnTermination, true),
  Rpc.make("Join", {
    payload: { ...sender, entity: Schema.String, device: Schema.Int, runner: Schema.String },
    success: Schema.Struct({
      payload: Schema.String,
      restored: Schema.optionalKey(Schema.Struct({ step: Schema.Int, values: Schema.Array(Schema.String) }))
    }),
    error: StaleEpoch
  }),
  // Also tells the keys whose values have arrived. When all ranks have them, the coordinator forgets them.
  Rpc.make("Beat", { payload: { ...sender, received: Schema.Array(Schema.String) }, error: StaleEpoch }),
  // Gives this rank's value, if it has one, and waits for that of rank 0 or for those of all.
  Rpc.make("Share", {
    payload: {
      ...sender,
      key: Schema.String,
      of: Schema.Literals(["first", "all"]),
      value: Schema.optionalKey(Schema.String)
    },
    success: Schema.Array(Schema.String),
    error: StaleEpoch
  }),
  Rpc.make("Checkpoint", { payload: { ...sender, step: Schema.Int, value: Schema.String }, error: StaleEpoch }),
  Rpc.make("Status", { success: JobStatus })
)

/** This runner has no free device. */
export const NoDevice = Schema.TaggedStruct("NoDevice", {})

const RankProtocol = RpcGroup.make(
  // Lasts as long as the program of the rank.
  Rpc.make("Start", {
    payload: { job: Schema.String, epoch: Schema.Int, rank: Schema.Int },
    success: Schema.String,
    error: Schema.Union([NoDevice, StaleEpoch, ProgramFailed])
  }).annotate(ClusterSchema.InterruptOnTermination, true),
  // Ends when the program has stopped. `false` if this entity does not know the epoch, and so cannot tell.
  Rpc.make("Stop", { payload: { epoch: Schema.Int }, success: Schema.Boolean })
)

export const coordinatorEntity = (name: string) => Entity.fromRpcGroup(`CudaJob/${name}`, CoordinatorProtocol)

/** Ranks live in the shard groups of the job: the first part of their ids says in which. */
export const rankEntity = (name: string, groups: ReadonlyArray<string>) =>
  Entity.fromRpcGroup(`CudaJob/${name}/Rank`, RankProtocol).annotate(
    ClusterSchema.ShardGroup,
    (id) => groups[Number.parseInt(id)] ?? groups[0] ?? "default"
  )

/** The entity for an attempt to place a rank. Each attempt has another id, and so most likely another runner. */
export const rankEntityId = (groups: ReadonlyArray<string>, job: string, rank: number, attempt: number): string =>
  `${(rank + attempt) % groups.length}:${job}/${rank}/${attempt}`

export type CoordinatorEntity = ReturnType<typeof coordinatorEntity>
export type RankEntity = ReturnType<typeof rankEntity>

/** Options of a job, with every default filled in. Durations in milliseconds. */
export interface Settings {
  readonly name: string
  readonly size: number
  readonly groups: ReadonlyArray<string>
  readonly heartbeat: number
  readonly timeout: number
  readonly lease: number
  readonly placement: number
  readonly stall: number
}
