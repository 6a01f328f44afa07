/**
 * Delta debugging: the smallest part of a list that still shows something.
 */
import * as Effect from "effect/Effect"

/** Finds a part of a list from which nothing can be left out. `shows` is asked of parts only; the whole list shows it. */
export const shrink = Effect.fnUntraced(function*<A, E, R>(
  all: ReadonlyArray<A>,
  shows: (part: ReadonlyArray<A>) => Effect.Effect<boolean, E, R>
): Effect.fn.Return<ReadonlyArray<A>, E, R> {
  let items = all
  let pieces = 2
  while (items.length >= 2) {
    const smaller = yield* firstThatShows(partsOf(items, pieces), shows)
    if (smaller !== undefined) {
      pieces = Math.max(2, Math.min(pieces - 1, smaller.length))
      items = smaller
    } else if (pieces >= items.length) return items
    else pieces = Math.min(items.length, pieces * 2)
  }
  return items
})

const firstThatShows = Effect.fnUntraced(function*<A, E, R>(
  parts: ReadonlyArray<ReadonlyArray<A>>,
  shows: (part: ReadonlyArray<A>) => Effect.Effect<boolean, E, R>
): Effect.fn.Return<ReadonlyArray<A> | undefined, E, R> {
  for (const part of parts) if (yield* shows(part)) return part
  return undefined
})

/** The pieces of a list, then the list without each of them. */
const partsOf = <A>(items: ReadonlyArray<A>, count: number): ReadonlyArray<ReadonlyArray<A>> => {
  const bounds = Array.from({ length: count + 1 }, (_, index) => Math.round(index * items.length / count))
  const pieces = Array.from({ length: count }, (_, index) => items.slice(bounds[index]!, bounds[index + 1]!))
  if (count === 2) return pieces
  return [...pieces, ...pieces.map((_, left) => pieces.flatMap((piece, index) => index === left ? [] : piece))]
}
