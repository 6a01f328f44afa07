/**
 * Requests that wait to be in a batch, by length: a batch is padded to one of a few lengths, so that short sequences do
 * not pay for long ones.
 */

/** A waiting request. */
export interface Waiting {
  readonly ids: Int32Array
  /** When it began to wait, in milliseconds. */
  readonly since: number
}

export interface Options {
  /** The lengths of batches, in ascending order. */
  readonly lengths: ReadonlyArray<number>
  /** Maximum number of requests in a batch. */
  readonly maxBatch: number
  /** How long the first request of a batch waits for more, in milliseconds. */
  readonly window: number
}

export interface Batch<Request> {
  readonly length: number
  /** The oldest first. */
  readonly requests: ReadonlyArray<Request>
}

/** Requests of similar length, the oldest first. */
interface Bucket<Request> {
  readonly length: number
  readonly requests: Set<Request>
}

export class WaitingRequests<Request extends Waiting> {
  readonly #buckets: ReadonlyArray<Bucket<Request>>
  readonly #maxBatch: number
  readonly #window: number
  constructor({ lengths, maxBatch, window }: Options) {
    this.#buckets = lengths.map((length) => ({ length, requests: new Set() }))
    this.#maxBatch = maxBatch
    this.#window = window
  }

  get size(): number {
    return this.#buckets.reduce((sum, { requests }) => sum + requests.size, 0)
  }

  /** Returns whether a batch may be due earlier than without it. */
  add(request: Request): boolean {
    const requests = this.#bucketOf(request)?.requests
    requests?.add(request)
    return requests?.size === 1 || requests?.size === this.#maxBatch
  }

  /** Forgets a request whose caller has left. Does nothing if it is in a batch already. */
  remove(request: Request): void {
    this.#bucketOf(request)?.requests.delete(request)
  }

  /** How long until a batch is due, in milliseconds: 0 if one is, infinite if nothing waits. */
  dueIn(now: number): number {
    return this.#buckets.reduce((least, bucket) => Math.min(least, Math.max(this.#dueAt(bucket) - now, 0)), Infinity)
  }

  /** Takes the batch that has been due for the longest time. */
  take(now: number): Batch<Request> | undefined {
    const due = this.#buckets.filter((bucket) => this.#dueAt(bucket) <= now)
    const [first, ...others] = due
    if (first === undefined) return undefined
    const { length, requests } = others.reduce((one, other) => since(other) < since(one) ? other : one, first)
    const taken = [...requests].slice(0, this.#maxBatch)
    for (const request of taken) requests.delete(request)
    return { length, requests: taken }
  }

  /** Takes all requests. */
  takeAll(): ReadonlyArray<Request> {
    const all = this.#buckets.flatMap(({ requests }) => [...requests])
    for (const { requests } of this.#buckets) requests.clear()
    return all
  }

  #bucketOf({ ids }: Request): Bucket<Request> | undefined {
    return this.#buckets.find(({ length }) => length >= ids.length)
  }

  /** A full batch is due at once. */
  #dueAt(bucket: Bucket<Request>): number {
    return bucket.requests.size >= this.#maxBatch ? -Infinity : since(bucket) + this.#window
  }
}

/** How long the oldest request has been waiting; infinite if there is none. */
const since = <Request extends Waiting>({ requests }: Bucket<Request>): number => {
  for (const oldest of requests) return oldest.since
  return Infinity
}
