/**
 * A rank: an entity that leases a device of its runner, joins its coordinator and runs the program, for as long as the coordinator answers.
 */
import * as Cause from "effect/Cause"
import * as Entity from "effect/cluster/Entity"
import * as Sharding from "effect/cluster/Sharding"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Schedule from "effect/Schedule"
import { JobDevices } from "../JobDevices.ts"
import type { CoordinatorEntity, RankEntity, Settings } from "./protocol.ts"
import { NoDevice, ProgramFailed, StaleEpoch } from "./protocol.ts"
import { now } from "./time.ts"

/** What a program is made of: its context, and messages as text. */
export interface Membership {
  readonly job: string
  readonly rank: number
  readonly epoch: number
  readonly device: number
  readonly payload: string
  readonly restored: { readonly step: number; readonly values: ReadonlyArray<string> } | undefined
  /** The value of rank 0, or those of all. Gives this rank's own, if there is one. */
  readonly share: (key: string, of: "first" | "all", value?: string) => Effect.Effect<ReadonlyArray<string>>
  readonly checkpoint: (step: number, value: string) => Effect.Effect<void>
  readonly heartbeat: Effect.Effect<void>
}

type Program<R> = (membership: Membership) => Effect.Effect<string, unknown, R>
type Coordinator = ReturnType<Effect.Success<CoordinatorEntity["client"]>>
interface Assignment {
  readonly job: string
  readonly epoch: number
  readonly rank: number
}

/** The program at work in an entity. */
interface Active {
  readonly epoch: number
  readonly stop: Deferred.Deferred<never, StaleEpoch>
  readonly ended: Latch.Latch
}

export const rankLayer = <R>(
  settings: Settings,
  entity: RankEntity,
  coordinator: CoordinatorEntity,
  program: Program<R>
): Layer.Layer<never, never, R | JobDevices | Sharding.Sharding> =>
  entity.toLayer(
    Effect.gen(function*() {
      const context = yield* Effect.context<R>()
      const client = yield* coordinator.client
      const devices = yield* JobDevices
      const address = yield* Entity.CurrentAddress
      const runner = yield* Entity.CurrentRunnerAddress
      const sharding = yield* Sharding.Sharding
      let active: Active | undefined
      let newest = 0

      const end = (what: Active) =>
        Effect.andThen(
          Deferred.fail(what.stop, new StaleEpoch({ job: settings.name, epoch: what.epoch, current: newest })),
          what.ended.await
        )

      const work = Effect.fnUntraced(function*(assignment: Assignment, stop: Active["stop"]) {
        const device = yield* devices.take
        if (Option.isNone(device)) return yield* Effect.fail(NoDevice.make({}))
        const incarnation = String(yield* sharding.getSnowflake)
        const place = { entity: address.entityId, device: device.value, runner: `${runner.host}:${runner.port}` }
        return yield* join(
          settings,
          client(assignment.job),
          { ...assignment, ...place, incarnation },
          stop,
          (membership) => Effect.provideContext(program(membership), context)
        )
      }, Effect.scoped)

      const start = Effect.fnUntraced(function*(assignment: Assignment) {
        const { epoch, job } = assignment
        if (epoch <= newest) return yield* new StaleEpoch({ job, epoch, current: newest })
        newest = epoch
        if (active !== undefined) yield* end(active)
        const current: Active = { epoch, stop: Deferred.makeUnsafe(), ended: Latch.makeUnsafe() }
        active = current
        return yield* Effect.raceFirst(work(assignment, current.stop), Deferred.await(current.stop)).pipe(
          Effect.ensuring(Effect.suspend(() => {
            if (active === current) active = undefined
            return current.ended.open
          }))
        )
      })

      return entity.of({
        Start: ({ payload }) => start(payload),
        Stop: Effect.fnUntraced(function*({ payload: { epoch } }) {
          if (newest < epoch) return false
          if (active !== undefined && active.epoch <= epoch) yield* end(active)
          return true
        })
      })
    }),
    { concurrency: "unbounded", maxIdleTime: "10 seconds" }
  )

/** Joins the coordinator, then runs the program until it ends or the lease does. */
const join = Effect.fnUntraced(function*(
  settings: Settings,
  coordinator: Coordinator,
  self: Assignment & {
    readonly incarnation: string
    readonly entity: string
    readonly device: number
    readonly runner: string
  },
  stop: Active["stop"],
  program: (membership: Membership) => Effect.Effect<string, unknown>
) {
  const { device, entity, epoch, incarnation, job, rank, runner } = self
  const sender = { epoch, incarnation, rank }
  const [asked, joined] = yield* stamped(coordinator.Join({ ...sender, entity, device, runner })).pipe(
    whileUnreachable(settings),
    Effect.timeoutOrElse({
      duration: settings.lease,
      orElse: () => Effect.fail(new StaleEpoch({ job, epoch }))
    })
  )
  const received: Array<string> = []
  const beat = Effect.suspend(() => {
    const told = received.slice()
    return Effect.tap(
      coordinator.Beat({ ...sender, received: told }),
      () => Effect.sync(() => received.splice(0, told.length))
    )
  })
  const progress = { at: yield* now }
  const advance = Effect.map(now, (at) => {
    progress.at = at
  })
  // A stale answer ends the program from outside, so a program has no failures of the cluster to handle.
  const say = <A, E extends Tagged>(effect: Effect.Effect<A, E | StaleEpoch>) =>
    effect.pipe(
      whileUnreachable(settings),
      Effect.catch((stale) => Effect.andThen(Deferred.fail(stop, stale), Effect.never))
    )
  const membership: Membership = {
    job,
    rank,
    epoch,
    device,
    payload: joined.payload,
    restored: joined.restored,
    share: (key, of, value) =>
      Effect.tap(
        say(coordinator.Share({ ...sender, key, of, ...(value === undefined ? {} : { value }) })),
        () => Effect.sync(() => received.push(key))
      ),
    checkpoint: (step, value) =>
      Effect.andThen(advance, Effect.andThen(say(coordinator.Checkpoint({ ...sender, step, value })), advance)),
    heartbeat: advance
  }
  return yield* Effect.raceFirst(
    outcome(self, program(membership)),
    keepLease(settings, self, beat, asked, progress)
  )
})

/**
 * Asks again while the coordinator's runner cannot be reached or is shutting down. Only a stale answer, or a defect, is final.
 */
const whileUnreachable =
  ({ heartbeat }: Settings) =>
  <A, E extends Tagged>(effect: Effect.Effect<A, E | StaleEpoch>): Effect.Effect<A, StaleEpoch> =>
    Effect.catchCause(effect, (cause): Effect.Effect<never, StaleEpoch | Unreachable> => {
      const error = Cause.findErrorOption(cause)
      if (Option.isSome(error)) return isStale(error.value) ? Effect.fail(error.value) : Effect.fail(new Unreachable())
      return Cause.hasInterruptsOnly(cause) ? Effect.fail(new Unreachable()) : Effect.die(Cause.squash(cause))
    }).pipe(
      Effect.retry({ while: isUnreachable, schedule: Schedule.spaced(heartbeat) }),
      Effect.catchIf(isUnreachable, () => Effect.never)
    )

interface Tagged {
  readonly _tag: string
}

class Unreachable {
  readonly _tag = "Unreachable"
}

const isUnreachable = (error: Tagged): error is Unreachable => error instanceof Unreachable

const isStale = (error: Tagged): error is StaleEpoch => error instanceof StaleEpoch

/** When the question that was answered was asked. */
const stamped = <A, E>(effect: Effect.Effect<A, E>): Effect.Effect<readonly [asked: number, A], E> =>
  Effect.flatMap(now, (asked) => Effect.map(effect, (answer) => [asked, answer] as const))

/** Renews the lease with each answered heartbeat, counted from when it was sent. Ends when the lease does, or when the program makes no progress. */
const keepLease = Effect.fnUntraced(function*<E extends Tagged>(
  settings: Settings,
  { epoch, job, rank }: Assignment,
  beat: Effect.Effect<void, E | StaleEpoch>,
  joined: number,
  progress: { readonly at: number }
) {
  let answered = joined
  while (true) {
    yield* Effect.sleep(Math.max(0, Math.min(settings.heartbeat, answered + settings.lease - (yield* now))))
    const at = yield* now
    const left = answered + settings.lease - at
    if (left <= 0) return yield* new StaleEpoch({ job, epoch })
    if (at - progress.at > settings.stall) return yield* stalled(settings, epoch, rank)
    const answer = yield* Effect.timeoutOption(whileUnreachable(settings)(stamped(beat)), left)
    if (Option.isSome(answer)) answered = answer.value[0]
  }
})

const stalled = ({ stall }: Settings, epoch: number, rank: number) =>
  Effect.fail(ProgramFailed.make({ rank, epoch, error: "Stalled", message: `no progress for ${stall} ms` }))

/** The result of the program, or its failure in words. */
const outcome = ({ epoch, rank }: Assignment, program: Effect.Effect<string, unknown>) =>
  Effect.flatMap(Effect.exit(program), (exit) => {
    if (Exit.isSuccess(exit)) return Effect.succeed(exit.value)
    const error = Cause.squash(exit.cause)
    return Effect.fail(ProgramFailed.make({ rank, epoch, error: nameOf(error), message: Cause.pretty(exit.cause) }))
  })

const nameOf = (error: unknown): string =>
  Predicate.hasProperty(error, "_tag") && Predicate.isString(error._tag)
    ? error._tag
    : error instanceof Error
    ? error.name
    : typeof error
