/**
 * A map from ranges of bytes to who used them last: the last write, and the reads since then. Neighbours with the same users are one
 * piece. Plain data, without Effect.
 */

/** The users of bytes: the last write, and the reads since then, which are never mutated. */
export interface Users<out User> {
  readonly write: User | undefined
  readonly reads: ReadonlyArray<User>
}

/** A range of bytes with the same users. */
export class Piece<User> implements Users<User> {
  from: number
  to: number
  write: User | undefined
  reads: ReadonlyArray<User>
  constructor(from: number, to: number, { reads, write }: Users<User>) {
    this.from = from
    this.to = to
    this.write = write
    this.reads = reads
  }
}

const noReads: ReadonlyArray<never> = []

const nobody: Users<never> = { write: undefined, reads: noReads }

/** The number of pieces from which those that nobody needs are dropped. */
const fewPieces = 64

export class Pieces<User extends object> {
  /** In order, without overlaps. Bytes between pieces have no users. */
  #list: Array<Piece<User>> = []
  #dropAt = fewPieces
  #found = 0
  readonly #isNeeded: (user: User) => boolean

  /** Users that nobody needs are dropped from time to time. */
  constructor(isNeeded: (user: User) => boolean) {
    this.#isNeeded = isNeeded
  }

  get length(): number {
    return this.#list.length
  }

  /** The only piece that overlaps a range, if it is exactly that range. After its users change, call `settle`. */
  exactly(from: number, to: number): Piece<User> | undefined {
    const index = this.#list.length === 1 ? 0 : this.#find(from)
    const piece = this.#list[index]
    this.#found = index
    return piece !== undefined && piece.from === from && piece.to === to ? piece : undefined
  }

  /** Merges the piece that `exactly` found with its neighbours, if they have the same users by now. */
  settle(): void {
    if (this.#list.length > 1) this.#merge(this.#found, this.#found)
  }

  /** Calls `look` with the pieces that overlap a range, in order. */
  visit(from: number, to: number, look: (piece: Piece<User>) => void): void {
    const list = this.#list
    for (let at = this.#find(from); at < list.length && list[at]!.from < to; at++) look(list[at]!)
  }

  /** Changes the users of a range. */
  update(from: number, to: number, change: (users: Users<User>) => Users<User>): void {
    const list = this.#list
    const start = this.#find(from)
    const first = list[start]
    if (first !== undefined && first.from === from && first.to === to) {
      const { reads, write } = change(first)
      first.write = write
      first.reads = reads
      if (list.length > 1) this.#merge(start, start)
      return
    }
    let end = start
    while (end < list.length && list[end]!.from < to) end++
    const changed = changedPieces(list, start, end, from, to, change)
    list.splice(start, end - start, ...changed)
    this.#merge(start, start + changed.length - 1)
    if (list.length >= this.#dropAt) this.#drop()
  }

  /** Forgets the users of a range. */
  clear(from: number, to: number): void {
    this.update(from, to, () => nobody)
  }

  /** Takes the pieces of another map that covers other bytes. */
  take(other: Pieces<User>): void {
    this.#list = [...this.#list, ...other.#list].toSorted((a, b) => a.from - b.from)
  }

  /** The index of the first piece that ends after an address. */
  #find(address: number): number {
    const list = this.#list
    let low = 0
    let high = list.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (list[middle]!.to <= address) low = middle + 1
      else high = middle
    }
    return low
  }

  /** Merges the pieces from `first` to `last`, and their neighbours, where they have the same users. */
  #merge(first: number, last: number): void {
    const list = this.#list
    for (let at = Math.min(last + 1, list.length - 1); at >= Math.max(first, 1); at--) {
      const left = list[at - 1]!
      const right = list[at]!
      if (left.to !== right.from || !haveSameUsers(left, right)) continue
      left.to = right.to
      list.splice(at, 1)
    }
  }

  #drop(): void {
    this.#list = this.#list.filter(({ reads, write }) =>
      (write !== undefined && this.#isNeeded(write)) || reads.some(this.#isNeeded)
    )
    this.#dropAt = Math.max(fewPieces, 2 * this.#list.length)
  }
}

/** The pieces in place of those from `start` to `end`: what they have outside the range, and the changed users inside. */
const changedPieces = <User>(
  list: ReadonlyArray<Piece<User>>,
  start: number,
  end: number,
  from: number,
  to: number,
  change: (users: Users<User>) => Users<User>
): Array<Piece<User>> => {
  const pieces: Array<Piece<User>> = []
  let at = from
  for (let index = start; index < end; index++) {
    const piece = list[index]!
    if (piece.from < from) pieces.push(new Piece(piece.from, from, piece))
    if (piece.from > at) pieces.push(new Piece(at, piece.from, change(nobody)))
    const until = Math.min(piece.to, to)
    pieces.push(new Piece(Math.max(piece.from, from), until, change(piece)))
    if (piece.to > to) pieces.push(new Piece(to, piece.to, piece))
    at = until
  }
  if (at < to) {
    pieces.push(new Piece(at, to, change(nobody)))
  }
  return pieces
}

const haveSameUsers = <User>(one: Piece<User>, other: Piece<User>): boolean =>
  one.write === other.write && one.reads.length === other.reads.length &&
  one.reads.every((read, index) => read === other.reads[index])
