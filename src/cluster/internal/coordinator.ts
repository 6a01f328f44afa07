/**
 * A coordinator: an entity that leads a job through its epochs. In each, it places the ranks, listens to their heartbeats, keeps their small values,
 * completes checkpoints, and ends all ranks when one fails.
 */
import * as Cause from "effect/Cause"
import * as Entity from "effect/cluster/Entity"
import type * as Sharding from "effect/cluster/Sharding"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import type { Begun, StoredCheckpoint } from "../JobStore.ts"
import { JobStore } from "../JobStore.ts"
import type { CoordinatorEntity, EpochFailure, RankEntity, Settings } from "./protocol.ts"
import { CheckpointNotSaved, CudaJobFailed, rankEntityId, RankLost, RankUnplaced, StaleEpoch } from "./protocol.ts"
import { now } from "./time.ts"

/** Another coordinator has begun a later epoch: this one has lost its job. */
class Superseded extends Data.TaggedError("Superseded") {}

interface Member {
  readonly incarnation: string
  readonly device: number
  readonly runner: string
  /** When it was last heard. */
  heard: number
}

/** The place of a rank in an epoch. */
interface Slot {
  readonly rank: number
  entity: string
  member: Member | undefined
  /** Whether its program has ended by itself. */
  ended: boolean
}

/** Values that some ranks have given. */
interface Sharing {
  readonly values: Array<string | undefined>
  readonly complete: Deferred.Deferred<ReadonlyArray<string>, StaleEpoch>
  /** The ranks that have them all. */
  readonly received: Set<number>
}

/** A checkpoint that some ranks have given. */
interface Gathering {
  readonly values: Array<string | undefined>
  readonly complete: Deferred.Deferred<void, StaleEpoch>
}

interface Epoch {
  readonly number: number
  readonly payload: string
  readonly slots: ReadonlyArray<Slot>
  readonly failed: Deferred.Deferred<never, EpochFailure | Superseded>
  readonly sharings: Map<string, Sharing>
  readonly gatherings: Map<number, Gathering>
  checkpoint: Option.Option<StoredCheckpoint>
}

interface Sender {
  readonly epoch: number
  readonly rank: number
  readonly incarnation: string
}

export const coordinatorLayer = (
  settings: Settings,
  restart: Schedule.Schedule<unknown, EpochFailure>,
  entity: CoordinatorEntity,
  rankEntity: RankEntity
): Layer.Layer<never, never, JobStore | Sharding.Sharding> =>
  entity.toLayer(
    Effect.gen(function*() {
      const store = yield* JobStore
      const ranks = yield* rankEntity.client
      const id = (yield* Entity.CurrentAddress).entityId
      const scope = yield* Effect.scope
      const key = `${settings.name}/${id}`
      const saving = Semaphore.makeUnsafe(1)
      let current: Epoch | undefined

      const stale = (epoch: number) =>
        new StaleEpoch({ job: settings.name, epoch, ...(current === undefined ? {} : { current: current.number }) })

      // Runs what a rank asks for, if the rank is the one that this epoch knows.
      const forMember = <A, E>(
        sender: Sender,
        f: (epoch: Epoch, slot: Slot) => Effect.Effect<A, E>
      ): Effect.Effect<A, E | StaleEpoch> =>
        Effect.flatMap(now, (at): Effect.Effect<A, E | StaleEpoch> => {
          const slot = current?.number === sender.epoch ? current.slots[sender.rank] : undefined
          if (current === undefined || slot?.member?.incarnation !== sender.incarnation) {
            return Effect.fail(stale(sender.epoch))
          }
          slot.member.heard = at
          return f(current, slot)
        })

      const begin = store.begin(key).pipe(
        Effect.tapError((error) => Effect.logWarning(`Job ${key} waits for its storage`, error)),
        Effect.retry({ schedule: Schedule.spaced(settings.heartbeat) }),
        Effect.orDie
      )

      // Stores a checkpoint that all ranks have given. Concurrent ones are stored in the order of their steps.
      const save = (epoch: Epoch, step: number, gathering: Gathering, values: ReadonlyArray<string>) =>
        Effect.gen(function*() {
          if (step > stepOf(epoch)) {
            const isCurrent = yield* Effect.retry(store.save(key, epoch.number, { step, values }), {
              schedule: Schedule.spaced(settings.heartbeat).pipe(Schedule.upTo({ times: 3 }))
            })
            if (!isCurrent) return yield* new Superseded()
            epoch.checkpoint = Option.some({ step, values })
          }
          epoch.gatherings.delete(step)
          yield* Deferred.succeed(gathering.complete, undefined)
        }).pipe(
          Effect.catch((error) =>
            Deferred.fail(
              epoch.failed,
              error._tag === "Superseded"
                ? error
                : CheckpointNotSaved.make({ epoch: epoch.number, step, message: Cause.pretty(Cause.fail(error)) })
            )
          ),
          saving.withPermits(1)
        )

      const gather = (epoch: Epoch, rank: number, step: number, value: string) =>
        Effect.suspend(() => {
          if (step <= stepOf(epoch)) return Effect.void // asked again after an answer that was lost
          const gathering = getOrInsert(epoch.gatherings, step, (): Gathering => ({
            values: epoch.slots.map(() => undefined),
            complete: Deferred.makeUnsafe()
          }))
          const isNew = gathering.values[rank] === undefined
          gathering.values[rank] = value
          const values = gathering.values.filter((value) => value !== undefined)
          const wait = Deferred.await(gathering.complete)
          return isNew && values.length === settings.size
            // Not in the fiber of the last rank's request, which ends if that rank's connection does.
            ? Effect.andThen(Effect.forkIn(save(epoch, step, gathering, values), scope), wait)
            : wait
        })

      const join = Effect.fnUntraced(function*({ device, entity, epoch: number, incarnation, rank, runner }: Sender & {
        readonly entity: string
        readonly device: number
        readonly runner: string
      }) {
        const epoch = current
        const slot = epoch?.slots[rank]
        if (epoch?.number !== number || slot?.entity !== entity) return yield* stale(number)
        if (slot.member !== undefined && slot.member.incarnation !== incarnation) {
          const message = `started anew at ${runner} while the epoch was at work`
          yield* Deferred.fail(epoch.failed, RankLost.make({ rank, epoch: number, message }))
          return yield* stale(number)
        }
        slot.member = { incarnation, device, runner, heard: yield* now }
        return {
          payload: epoch.payload,
          ...(Option.isSome(epoch.checkpoint) ? { restored: epoch.checkpoint.value } : {})
        }
      })

      // One attempt to place a rank: the result of its program, or `None` to try elsewhere.
      const attempt = (epoch: Epoch, slot: Slot) =>
        Effect.flatMap(
          Effect.forkIn(
            Effect.exit(ranks(slot.entity).Start({ job: id, epoch: epoch.number, rank: slot.rank })),
            scope
          ),
          (call) =>
            Effect.raceFirst(
              Fiber.join(call),
              Effect.andThen(
                Effect.sleep(settings.timeout),
                Effect.suspend(() => slot.member === undefined ? Effect.succeed(undefined) : Effect.never)
              )
            ).pipe(
              Effect.onExit(() => Effect.sync(() => call.interruptUnsafe())),
              Effect.flatMap((exit) => exit === undefined ? Effect.succeedNone : answerOf(epoch, slot, exit))
            )
        )

      const place = Effect.fnUntraced(function*(epoch: Epoch, slot: Slot) {
        const until = (yield* now) + settings.placement
        for (let count = 0;; count++) {
          slot.entity = rankEntityId(settings.groups, id, slot.rank, count)
          const result = yield* attempt(epoch, slot)
          if (Option.isSome(result)) return result.value
          if ((yield* now) > until) return yield* Effect.fail(unplaced(epoch, slot, count + 1, settings))
          yield* Effect.sleep(Math.min(settings.heartbeat, 5 * count))
        }
      })

      const watch = (epoch: Epoch) =>
        Effect.gen(function*() {
          while (true) {
            yield* Effect.sleep(settings.heartbeat / 2)
            const at = yield* now
            const lost = epoch.slots.find(({ ended, member }) =>
              member && !ended && at - member.heard > settings.timeout
            )
            if (lost) return yield* Effect.fail(silent(epoch, lost, settings))
          }
        })

      // After this, every rank of the epoch has stopped, or its lease has run out and it is stopping by itself.
      const close = Effect.fnUntraced(function*(epoch: Epoch) {
        if (current === epoch) current = undefined
        const over = stale(epoch.number)
        for (const { complete } of epoch.sharings.values()) yield* Deferred.fail(complete, over)
        for (const { complete } of epoch.gatherings.values()) yield* Deferred.fail(complete, over)
        yield* Effect.forEach(epoch.slots, (slot) => stop(epoch, slot), { concurrency: "unbounded", discard: true })
      })

      const stop = Effect.fnUntraced(function*(epoch: Epoch, { ended, entity, member }: Slot) {
        if (ended || member === undefined) return
        const left = member.heard + settings.lease - (yield* now)
        if (left <= 0) return
        const stopped = yield* ranks(entity).Stop({ epoch: epoch.number }).pipe(
          Effect.catchCause(() => Effect.succeed(false)),
          Effect.timeoutOption(left)
        )
        if (Option.isNone(stopped) || stopped.value) return
        yield* Effect.sleep(Math.max(0, member.heard + settings.lease - (yield* now)))
      })

      const lead = (begun: Begun, payload: string) =>
        Effect.suspend(() => {
          const epoch = makeEpoch(settings, begun, payload)
          current = epoch
          return Effect.forEach(epoch.slots, (slot) => place(epoch, slot), { concurrency: "unbounded" }).pipe(
            Effect.raceFirst(Deferred.await(epoch.failed)),
            Effect.raceFirst(watch(epoch)),
            Effect.ensuring(close(epoch)),
            Effect.flatMap((result) =>
              Effect.flatMap(
                Effect.retry(store.finish(key, epoch.number, result), {
                  schedule: Schedule.spaced(settings.heartbeat)
                }),
                (isCurrent) => isCurrent ? Effect.succeed(result) : Effect.fail(new Superseded())
              )
            ),
            Effect.catchTag("PersistenceError", Effect.die)
          )
        })

      const run = Effect.fnUntraced(function*(payload: string) {
        const step = yield* Schedule.toStep(restart)
        let begun = yield* begin
        // An earlier coordinator may have left ranks behind. Without one, they stop when their lease runs out.
        if (begun.epoch > 1 && Option.isNone(begun.result)) yield* Effect.sleep(settings.lease)
        for (let restarts = 0;; begun = yield* begin) {
          if (Option.isSome(begun.result)) return begun.result.value
          const outcome = yield* Effect.result(lead(begun, payload))
          if (outcome._tag === "Success") return outcome.success
          const failure = outcome.failure
          if (failure._tag === "Superseded") {
            // Either the cluster is about to take this entity away, or the other coordinator was the one to lose it.
            yield* Effect.logWarning(`Job ${key}: another coordinator has taken over epoch ${begun.epoch}`)
            yield* Effect.sleep(2 * settings.lease)
            continue
          }
          const next = yield* delayOf(step, failure)
          if (Option.isNone(next)) {
            return yield* new CudaJobFailed({ job: settings.name, id, restarts, reason: failure })
          }
          restarts++
          yield* Effect.logWarning(`Job ${key}: epoch ${begun.epoch} failed, restart ${restarts}`, failure)
          yield* Effect.sleep(next.value)
        }
      })

      return entity.of({
        Run: ({ payload }) => run(payload.payload),
        Join: ({ payload }) => join(payload),
        Beat: ({ payload }) => forMember(payload, (epoch, { rank }) => forget(epoch, rank, payload.received)),
        Share: ({ payload }) => forMember(payload, (epoch, { rank }) => share(epoch, rank, payload)),
        Checkpoint: ({ payload }) =>
          forMember(payload, (epoch, { rank }) => gather(epoch, rank, payload.step, payload.value)),
        Status: () =>
          Effect.sync(() => ({
            epoch: current?.number ?? 0,
            ...(current !== undefined && Option.isSome(current.checkpoint)
              ? { step: current.checkpoint.value.step }
              : {}),
            ranks: (current?.slots ?? []).flatMap(({ member, rank }) =>
              member === undefined ? [] : [{ rank, device: member.device, runner: member.runner }]
            )
          }))
      })
    }),
    { concurrency: "unbounded" }
  )

const makeEpoch = ({ size }: Settings, begun: Begun, payload: string): Epoch => ({
  number: begun.epoch,
  payload,
  slots: Array.from({ length: size }, (_, rank): Slot => ({ rank, entity: "", member: undefined, ended: false })),
  failed: Deferred.makeUnsafe(),
  sharings: new Map(),
  gatherings: new Map(),
  checkpoint: begun.checkpoint
})

const stepOf = ({ checkpoint }: Epoch) => Option.isSome(checkpoint) ? checkpoint.value.step : -Infinity

const getOrInsert = <K, V>(map: Map<K, V>, key: K, make: () => V): V => {
  const found = map.get(key)
  if (found !== undefined) return found
  const made = make()
  map.set(key, made)
  return made
}

const share = (
  epoch: Epoch,
  rank: number,
  { key, of, value }: { readonly key: string; readonly of: "first" | "all"; readonly value?: string }
) =>
  Effect.suspend(() => {
    const { complete, values } = getOrInsert(epoch.sharings, key, (): Sharing => ({
      values: epoch.slots.map(() => undefined),
      complete: Deferred.makeUnsafe(),
      received: new Set()
    }))
    if (value !== undefined) values[rank] = value
    const given = (of === "all" ? values : values.slice(0, 1)).filter((value) => value !== undefined)
    const wait = Deferred.await(complete)
    const isComplete = given.length === (of === "all" ? values.length : 1)
    return isComplete ? Effect.andThen(Deferred.succeed(complete, given), wait) : wait
  })

/** Forgets what every rank has. A rank asks again only for what it has not received, so nothing forgotten is asked for. */
const forget = (epoch: Epoch, rank: number, keys: ReadonlyArray<string>) =>
  Effect.sync(() => {
    for (const key of keys) {
      const received = epoch.sharings.get(key)?.received.add(rank)
      if (received?.size === epoch.slots.length) epoch.sharings.delete(key)
    }
  })

interface Tagged {
  readonly _tag: string
}

/** What the end of a call says about the rank: its result, a failure, or (`None`) that it never began here. */
const answerOf = (
  epoch: Epoch,
  slot: Slot,
  exit: Exit.Exit<string, Tagged | EpochFailure>
): Effect.Effect<Option.Option<string>, EpochFailure> => {
  if (Exit.isSuccess(exit)) {
    slot.ended = true
    return Effect.succeedSome(exit.value)
  }
  const error = Option.getOrUndefined(Exit.findErrorOption(exit))
  if (isProgramFailed(error)) {
    slot.ended = true
    return Effect.fail(error)
  }
  if (slot.member === undefined) return Effect.succeedNone
  return Effect.fail(RankLost.make({ rank: slot.rank, epoch: epoch.number, message: Cause.pretty(exit.cause) }))
}

const isProgramFailed = (
  error: Tagged | EpochFailure | undefined
): error is Extract<EpochFailure, { readonly _tag: "ProgramFailed" }> => error?._tag === "ProgramFailed"

const silent = (epoch: Epoch, { member, rank }: Slot, { timeout }: Settings) =>
  RankLost.make({ rank, epoch: epoch.number, message: `no heartbeat from ${member?.runner} for ${timeout} ms` })

const unplaced = (epoch: Epoch, { rank }: Slot, attempts: number, { placement }: Settings) =>
  RankUnplaced.make({
    rank,
    epoch: epoch.number,
    message: `no runner had a free device within ${placement} ms, in ${attempts} attempts`
  })

/** The delay before the next restart, or `None` if there is none. */
const delayOf = (
  step: (now: number, failure: EpochFailure) => Pull.Pull<[unknown, Duration.Duration], never, unknown>,
  failure: EpochFailure
) =>
  Effect.flatMap(now, (at) =>
    step(at, failure).pipe(
      Effect.map(([, delay]) => Option.some(delay)),
      Pull.catchDone(() => Effect.succeedNone)
    ))
